import warnings

import numpy as np
import pytest
from PIL import Image

from kdbench.config.overrides import from_overrides
from kdbench.data import embedded, sources, synmnist, torchvision_sets
from kdbench.data.batch import Images
from kdbench.errors import UserError
from tests.helpers.data import data_module, group, load, module


@pytest.fixture(scope="module")
def digits():
    """Training and test digits by class: lists of ten (M, 28, 28, 1) arrays."""
    return [[part.images[part.labels == digit] for digit in range(10)] for part in embedded.load("mnist5k")]


def config(**changes):
    return group("dataset", "synmnist", **({"num_train": 2000, "num_test": 1000} | changes))


def refusal(**changes):
    with pytest.raises(UserError) as error:
        sources.check(config(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("count", [2, 10, 37, 100, 200, 1000])
def test_every_class_has_a_different_number(count):
    assert synmnist.codes(count, None).tolist() == list(range(count))
    maps = [synmnist.codes(count, seed) for seed in (0, 1, 2, 3, 4, 5)]
    assert all(m.dtype == np.int64 and sorted(m) == list(range(count)) for m in maps)
    assert np.array_equal(maps[0], synmnist.codes(count, 0))
    assert len({m.tobytes() for m in maps}) > 1


@pytest.mark.parametrize(("count", "length"), [(2, 1), (10, 1), (11, 2), (100, 2), (101, 3), (1000, 3)])
def test_numbers_are_as_long_as_the_last_one_and_zero_padded(count, length):
    assert synmnist.length(count) == length
    train, test = load(config(num_classes=count))
    assert train.classes == test.classes == tuple(f"{i:0{length}d}" for i in range(count))


@pytest.mark.parametrize(
    ("size", "count", "widths"), [(32, 1, [32]), (32, 2, [16, 16]), (32, 3, [10, 11, 11]), (13, 3, [4, 4, 5])]
)
def test_cells_split_the_width_evenly(size, count, widths):
    columns = synmnist.cells(size, count)
    assert [c.stop - c.start for c in columns] == widths
    assert [i for c in columns for i in range(size)[c]] == list(range(size))


@pytest.mark.parametrize("count", [2, 37, 1000])
def test_labels_are_spread_evenly_in_random_order(count):
    for part in load(config(num_classes=count)):
        assert part.labels.dtype == np.int64
        totals = np.bincount(part.labels, minlength=count)
        assert len(totals) == count
        assert totals.max() - totals.min() <= 1
        assert (np.diff(part.labels) < 0).mean() == pytest.approx((1 - 1 / count) / 2, abs=0.06)


@pytest.mark.parametrize("map_seed", [None, 3])
@pytest.mark.parametrize(("count", "size"), [(10, 32), (100, 32), (200, 32), (1000, 14)])
def test_images_show_the_number_of_their_class_in_digits_of_their_own_part(digits, count, size, map_seed):
    parts = load(config(num_train=1000, num_classes=count, image_size=size, map_seed=map_seed))
    columns = synmnist.cells(size, synmnist.length(count))
    code = synmnist.codes(count, map_seed)
    used = [set(), set()]
    for which, part in enumerate(parts):
        assert part.images.shape == (1000, size, size, 1)
        assert part.images.dtype == np.uint8
        assert [int(name) for name in part.classes] == code.tolist()
        for place, cell in enumerate(columns):
            known = [
                {image.tobytes() for image in synmnist.resized(images, cell.stop - cell.start, size)}
                for images in digits[which]
            ]
            for image, label in zip(part.images[..., 0], part.labels, strict=True):
                shown = image[:, cell].tobytes()
                assert shown in known[int(part.classes[label][place])]
                used[which].add((cell.stop - cell.start, shown))
    assert min(map(len, used)) > 500  # many digits, not a few repeated ones
    assert not used[0] & used[1]


def test_a_digit_in_the_size_of_the_cell_is_not_changed(digits):
    images = digits[0][3]
    assert np.array_equal(synmnist.resized(images, 28, 28), images[..., 0])


@pytest.mark.parametrize(("width", "height"), [(32, 32), (16, 32), (4, 12), (10, 20), (40, 80), (8, 8)])
def test_digits_are_resized_independently(digits, width, height):
    images = digits[0][3][:50]
    single = [Image.fromarray(i[..., 0]).resize((width, height), Image.Resampling.LANCZOS) for i in images]
    assert np.array_equal(synmnist.resized(images, width, height), np.stack([np.asarray(i) for i in single]))


def test_all_three_channels_are_the_grey_image():
    grey, colour = (load(config(channels=channels))[0].images for channels in (1, 3))
    assert np.array_equal(colour, grey.repeat(3, axis=3))


def test_a_seed_gives_the_same_images_again_and_another_seed_others():
    first = load(config())
    synmnist.load.cache_clear()
    again, other_seed, other_map = (load(config(**changes)) for changes in ({}, {"seed": 1}, {"map_seed": 1}))
    for which, part in enumerate(first):
        assert np.array_equal(part.images, again[which].images)
        assert np.array_equal(part.labels, again[which].labels)
        assert not np.array_equal(part.images, other_seed[which].images)
        assert not np.array_equal(part.labels, other_seed[which].labels)
        assert not np.array_equal(part.images, other_map[which].images)
        assert np.array_equal(part.labels, other_map[which].labels)


def test_data_sets_are_made_once_and_are_read_only():
    synmnist.load.cache_clear()
    arguments = (200, 100, 10, 8, 1, 0, None, "mnist5k", sources.data_root({"root": None}))
    train, test = synmnist.load(*arguments)
    assert synmnist.load(*arguments)[0] is train
    for array in (train.images, train.labels, test.images, test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_mean_and_std_in_the_configuration_are_those_of_the_training_set():
    dataset = group("dataset", "synmnist")
    pixels = load(dataset)[0].images / 255
    assert pixels.mean() == pytest.approx(dataset["mean"][0], abs=0.00006)
    assert pixels.std() == pytest.approx(dataset["std"][0], abs=0.00006)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_the_data_module_loads_a_composed_configuration_without_warnings(loader):
    overrides = ["dataset=synmnist", "dataset.num_classes=37", "dataset.num_train=500", "dataset.num_test=100"]
    cfg = from_overrides([*overrides, f"dataset.loader={loader}", "dataset.workers=0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = data_module(cfg["dataset"], cfg["imbalance"], cfg["noise"], 32).prepare()
        batches = [next(iter(data.train_dataloader())), *data.val_dataloader(), *data.test_dataloader()]
    assert (data.num_classes, data.in_chans, data.image_size) == (37, 1, 32)
    assert len(data.classes) == 37
    assert all(batch.images.shape[1:] == (1, 32, 32) for batch in batches)
    assert sum(len(batch.labels) for batch in batches[1:]) == data.val_size + 100


def test_the_full_mnist_is_read_from_the_data_root(tmp_path, monkeypatch):
    def read(source, root):
        assert (source, root) == ("mnist", tmp_path)
        flat = [np.full((20, 28, 28, 1), grey, np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] % 10
                for grey in (100, 200)]  # fmt: skip
        return tuple(Images(images, np.arange(20) % 10, tuple("0123456789")) for images in flat)

    monkeypatch.setattr(torchvision_sets, "load", read)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    data = module("synmnist", root=str(tmp_path), digits="mnist", num_train=300, num_test=100, image_size=8)
    train, test = synmnist.load(300, 100, 100, 8, 1, 0, None, "mnist", tmp_path)
    for part, grey in ((train, 100), (test, 200)):
        shown = part.images[..., 0].astype(int) - grey  # each digit is a flat image, brighter by its value
        assert np.array_equal(shown[:, 4, 1] * 10 + shown[:, 4, 6], part.labels)
    assert data.test_size == 100
    synmnist.load.cache_clear()


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"image_size": 8, "num_classes": 1000}, ["dataset.image_size=8: 3 digits", "need at least 12 pixels"]),
        ({"image_size": 7}, ["dataset.image_size=7: 2 digits", "dataset.num_classes=100", "at least 8 pixels"]),
        ({"image_size": 3, "num_classes": 10}, ["dataset.image_size=3: 1 digit ", "at least 4 pixels"]),
        ({"num_train": 99}, ["dataset.num_train=99", "dataset.num_classes=100"]),
        ({"num_test": 99}, ["dataset.num_test=99", "dataset.num_classes=100"]),
    ],
)
def test_impossible_options_are_refused(changes, parts):
    message = refusal(**changes)
    assert all(part in message for part in parts)


def test_the_smallest_possible_options_are_accepted():
    assert sources.check(config(image_size=12, num_classes=1000, num_train=1000, num_test=1000)).num_classes == 1000


def test_the_message_about_a_missing_mnist_names_the_folder_and_the_keys_to_set(tmp_path):
    message = refusal(digits="mnist", root=str(tmp_path))
    parts = [
        "dataset.digits=mnist",
        str(tmp_path),
        "dataset.root",
        "KDBENCH_DATA",
        "dataset=mnist dataset.download=true",
    ]
    assert all(part in message for part in parts)


def test_a_damaged_mnist_is_named(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    with pytest.raises(UserError, match=r"dataset=synmnist: cannot be read from "):
        load(config(digits="mnist", root=str(tmp_path)))


@pytest.mark.parametrize(
    "override",
    ["num_classes=1", "num_classes=1001", "digits=digits", "map_seed=-1", "image_size=3", "num_train=0", "channels=2"],
)
def test_values_against_the_rules_are_refused(override):
    with pytest.raises(UserError, match=rf"dataset\.{override}"):
        from_overrides(["dataset=synmnist", f"dataset.{override}"])

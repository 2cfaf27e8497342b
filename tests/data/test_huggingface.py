import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.data import sources
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import data_module, group, load

datasets = pytest.importorskip("datasets")
RNG = np.random.default_rng(0)
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network is used"))


def rows(count, size=8, mode="RGB", **names):
    shape = (count, size, size, 3) if mode == "RGB" else (count, size, size)
    pixels = RNG.integers(0, 256, shape, np.uint8)
    image, label = names.get("image", "image"), names.get("label", "label")
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    content = {image: [Image.fromarray(each) for each in pixels], label: [i % 3 for i in range(count)]}
    return datasets.Dataset.from_dict(content, features=features), pixels


def saved(path, train, test, names=("train", "test")):
    """The folder, as text, that holds the two splits."""
    datasets.DatasetDict(zip(names, (train, test), strict=True)).save_to_disk(str(path))
    return str(path)


def config(root, **changes):
    return group("dataset", "huggingface", root=root, **changes)


def refusal(dataset):
    """The message, in one line, with which a check refuses a data set."""
    with pytest.raises(UserError) as error:
        sources.check(dataset)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def root(tmp_path):
    return saved(tmp_path / "set", rows(12)[0], rows(6)[0])


def test_images_labels_and_classes_of_a_saved_data_set(tmp_path):
    (train, pixels), (test, _) = rows(12, image="img", label="fine"), rows(6, image="img", label="fine")
    root = saved(tmp_path / "set", train, test, names=("fit", "eval"))
    keys = {"image_key": "img", "label_key": "fine", "train_split": "fit", "test_split": "eval"}
    dataset = config(root, **keys)
    sizes = sources.check(dataset)
    assert sizes[:3] == (3, 3, 8)
    assert sizes.mean == tuple(np.round((pixels / 255).mean((0, 1, 2)), 4))
    train, test = load(dataset)
    assert np.array_equal(train.images, pixels)
    assert train.labels.tolist() == [i % 3 for i in range(12)]
    assert train.classes == tuple(NAMES)
    assert len(test.labels) == 6
    assert data_module(dataset | {"val_fraction": 0.25}, batch_size=4).prepare().train_size == 9


def test_images_are_converted_and_fitted(tmp_path):
    root = saved(tmp_path / "set", rows(6, mode="L")[0], rows(3, size=10)[0])
    train, test = load(config(root, channels=1))
    assert train.images.shape == (6, 8, 8, 1)
    assert test.images.shape == (3, 8, 8, 1)
    assert load(config(root, image_size=4))[0].images.shape == (6, 4, 4, 3)


def test_the_identity_covers_content_splits_and_columns(tmp_path, root):
    def spec(place, *overrides):
        return spec_of(["dataset=huggingface", f"dataset.root={place}", "method=ce", "student=resnet8", *overrides])

    same = saved(tmp_path / "same", *(datasets.load_from_disk(root)[name] for name in ("train", "test")))
    other = saved(tmp_path / "other", rows(12)[0], rows(6)[0])
    assert spec(root).id == spec(same).id
    ids = {
        spec(root).id,
        spec(other).id,
        spec(root, "dataset.test_split=train").id,
        spec(root, "dataset.channels=1").id,
    }
    assert len(ids) == 4
    named = spec(root, "dataset.name=user/set")
    assert named.name == "ce-resnet8-user_set-s0"
    assert named.directory.parent.name == "runs"


def test_a_data_set_that_is_not_cached_is_refused_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    before = datasets.config.HF_HUB_OFFLINE
    message = refusal(config(None, name="someone/something"))
    assert message.startswith("dataset.name=someone/something: cannot be loaded: ")
    assert message.endswith("kdbench reads only what datasets.load_dataset has cached before")
    assert before == datasets.config.HF_HUB_OFFLINE


def test_a_data_set_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    parts = {"train": rows(12), "test": rows(6)}
    for name, (part, _) in parts.items():
        part.to_parquet(str(tmp_path / f"{name}.parquet"))
    files = {name: str(tmp_path / f"{name}.parquet") for name in parts}
    built = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "built"))
    folder = Path(built["train"].cache_files[0]["filename"]).parent
    # what downloading someone/something would have left
    cached = tmp_path / "cache/someone___something/default/0.0.0/0123"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    for name in parts:
        (cached / f"parquet-{name}.arrow").rename(cached / f"something-{name}.arrow")
    information = (cached / "dataset_info.json").read_text().replace('"parquet"', '"something"')
    (cached / "dataset_info.json").write_text(information)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = load(config(None, name="someone/something"))
    assert np.array_equal(train.images, parts["train"][1])
    assert np.array_equal(test.images, parts["test"][1])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"image_key": "img"}, ["dataset.image_key=img", "must be one of image, label"]),
        ({"label_key": "fine"}, ["dataset.label_key=fine", "must be one of image, label"]),
        ({"image_key": "label"}, ["dataset.image_key=label: holds int; must be a column of the type Image"]),
        ({"train_split": "trian"}, ["dataset.train_split=trian", "must be one of train, test; nearest: train"]),
        ({"num_classes": 4}, ["dataset.num_classes=4: huggingface has 3 classes"]),
        ({"subset": "x"}, ["dataset.subset=x: must be null"]),
        ({"root": None}, ["dataset.root=null"]),
        ({"root": "absent"}, ["dataset.root=absent: cannot be loaded"]),
        ({"download": True}, ["dataset.download=true", "must be false"]),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused_in_one_line(root, changes, parts):
    message = refusal(config(root) | changes)
    assert all(part in message for part in parts), message


def test_a_single_split_is_refused(tmp_path):
    rows(6)[0].save_to_disk(str(tmp_path / "one"))
    assert "is a single split; must be a DatasetDict" in refusal(config(str(tmp_path / "one")))


def test_a_first_image_that_is_not_square_needs_a_size(tmp_path):
    images = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (6, 4), (i, 0, 255 - i)) for i in range(6)], "label": [0, 1] * 3},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    dataset = config(saved(tmp_path / "set", images, images), std=[0.5], mean=[0.5])
    assert refusal(dataset).startswith("dataset.image_size=null: the first image is 6x4, not square")
    assert sources.check(dataset | {"image_size": 4}).image_size == 4
    assert load(dataset | {"image_size": 4})[0].classes == ("0", "1")

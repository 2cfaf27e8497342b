"""Data sets from outside: a file of arrays, a user's own reader, or Hugging Face `datasets`. Imports no torch.

Their content decides what they are: number of classes, channels, size, mean and standard deviation, and a fingerprint
that stands for the content in the identity of a run.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.data import arrays, custom, huggingface, npz
from kdbench.data.arrays import NAMES, Arrays, Description
from kdbench.data.batch import Images
from kdbench.data.hashes import file_hash
from kdbench.errors import UserError

# source -> the options that decide what is read
_READ_BY = {
    "arrays": ("source", "root", "layout"),
    "custom": ("source", "root", "layout", "reader", "options"),
    "huggingface": (
        "source", "root", "name", "subset", "train_split", "test_split", "image_key", "label_key", "image_size",
        "channels",
    ),
}  # fmt: skip
SOURCES = tuple(_READ_BY)


class _Content(NamedTuple):
    """A data set that is in memory.

    Attributes:
        description: what networks and options depend on.
        train, test: its two parts.
        fingerprint: 16 hex digits of a hash of the arrays as they were read.
    """

    description: Description
    train: Images
    test: Images
    fingerprint: str


def describe(dataset: Mapping[str, Any]) -> Description:
    """Number of classes, channels and size of the images, after all checks that these three allow.

    Args:
        dataset: the `dataset` group, with one of `SOURCES`.

    Raises:
        UserError: the data are missing or not allowed, or an option contradicts them.
    """
    _check_options(dataset)
    description = _describe(dataset)
    for key in ("image_size", "channels"):
        if dataset[key] not in (None, actual := getattr(description, key)):
            raise UserError(f"dataset.{key}={dataset[key]}: {dataset['name']} has {actual}")
    return description


def _check_options(dataset: Mapping[str, Any]) -> None:
    source = dataset["source"]
    if dataset["tree"]:
        raise UserError(f"dataset.tree={dataset['tree']}: must be null with dataset={source}, which reads no tree")
    if dataset["download"]:
        raise UserError(f"dataset.download=true: must be false with dataset={source}, which downloads nothing")
    if source == "arrays" and not dataset["root"]:
        raise UserError(f"dataset.root=null: give the .npz file with {', '.join(NAMES)}")
    if source == "custom" and not dataset["reader"]:
        raise UserError("dataset.reader=null: give the import path of a function, package.module.function")
    if source == "huggingface" and not dataset["root"] and dataset["name"] == source:
        raise UserError("dataset.root=null: give a folder of save_to_disk, or the name of a cached set as dataset.name")


def _describe(dataset: Mapping[str, Any]) -> Description:
    if dataset["source"] == "arrays":
        return npz.description(_path(dataset), dataset["layout"])
    return _content(_key(dataset)).description


def load(dataset: Mapping[str, Any]) -> tuple[Images, Images]:
    """Training and test set, as `kdbench.data.sources.load` returns them.

    Raises:
        UserError: the data cannot be read, or have values that are not allowed.
    """
    if dataset["source"] == "arrays":
        path = _path(dataset)
        return _images(npz.read(path), npz.description(path, dataset["layout"]), f"dataset.root={path}")
    content = _content(_key(dataset))
    # the arrays are shared by all runs of the process, and loaders use those of a test set as they are
    test = content.test
    return content.train, test._replace(images=test.images.copy(), labels=test.labels.copy())


def fingerprint(dataset: Mapping[str, Any]) -> str:
    """16 hex digits of a hash of the content: of the file, or of the arrays that were read.

    Raises:
        UserError: the data cannot be read.
    """
    _check_options(dataset)
    if dataset["source"] != "arrays":
        return _content(_key(dataset)).fingerprint
    path = _path(dataset)
    try:
        return file_hash(path)[:16]
    except OSError as error:
        raise UserError(f"dataset.root={path}: cannot be read ({error.strerror})") from error


def statistics(dataset: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the training pixels in [0, 1], per channel.

    Raises:
        UserError: as `load`; or all pixels of a channel are the same.
    """
    return _statistics(_key(dataset), fingerprint(dataset))


@lru_cache(maxsize=16)
def _statistics(key: str, _fingerprint: str) -> tuple[list[float], list[float]]:
    means, deviations = arrays.statistics(load(json.loads(key))[0].images)
    if not all(deviations):
        channel = deviations.index(0)
        raise UserError(f"dataset.std=null: all training pixels of channel {channel} are the same; give dataset.std")
    return means, deviations


def _path(dataset: Mapping[str, Any]) -> Path:
    return Path(dataset["root"]).expanduser()


def _key(dataset: Mapping[str, Any]) -> str:
    """The options that decide what is read, as JSON."""
    return json.dumps({key: dataset[key] for key in _READ_BY[dataset["source"]]})


@lru_cache(maxsize=2)  # whole data sets are kept in memory
def _content(key: str) -> _Content:
    """What a reader returns for the options in `key`; called once a process."""
    dataset = json.loads(key)
    if dataset["source"] == "huggingface":
        origin = f"dataset={dataset['name']}"
        read, classes = huggingface.read(dataset)
        layout: str | None = "nhwc"
    else:
        origin, layout, classes = f"dataset.reader={dataset['reader']}", dataset["layout"], None
        read = custom.read(dataset["reader"], dataset["root"], dataset["options"] or {})
    description = arrays.describe(*read, layout, origin)
    train, test = _images(read, description, origin, classes)
    return _Content(description, train, test, _hash(read))


def _images(
    read: Arrays, description: Description, origin: str, classes: tuple[str, ...] | None = None
) -> tuple[Images, Images]:
    """Training and test set of four arrays that have passed `arrays.describe`."""
    x_train, y_train, x_test, y_test = read
    count = description.num_classes
    names = classes[:count] if classes and len(classes) >= count else tuple(str(label) for label in range(count))
    train = arrays.to_images(x_train, description.layout, "x_train", origin)
    test = arrays.to_images(x_test, description.layout, "x_test", origin)
    return Images(train, y_train.astype(np.int64), names), Images(test, y_test.astype(np.int64), names)


def _hash(read: Arrays) -> str:
    """The first 16 hex digits of a SHA-256 over names, types, shapes and bytes of the four arrays."""
    sha = hashlib.sha256()
    for name, array in zip(NAMES, read, strict=True):
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]

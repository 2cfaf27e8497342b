"""A data set of Hugging Face `datasets`, from a folder or from the local cache; the network is never used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.config.rules import nearest
from kdbench.data.arrays import Arrays
from kdbench.data.folder import check_depth, converted, fit
from kdbench.errors import UserError


def read(dataset: Mapping[str, Any]) -> tuple[Arrays, tuple[str, ...] | None]:
    """Read and decode both splits.

    Args:
        dataset: the `dataset` group.

    Returns:
        Images as (N, size, size, channels) uint8 and their labels; names of the classes, or None if it has none.

    Raises:
        UserError: the package or the data set is missing, or a key is not one of its columns.
    """
    train, test = _splits(dataset)
    size = dataset["image_size"]
    arrays: list[np.ndarray] = []
    for split, rows in ((dataset["train_split"], train), (dataset["test_split"], test)):
        for key in ("image_key", "label_key"):
            if (column := dataset[key]) not in rows.column_names:
                columns = ", ".join(rows.column_names)
                raise UserError(
                    f"dataset.{key}={column}: the split {split} has no such column; must be one of {columns}"
                )
        size = size or _first_side(rows, dataset["image_key"])
        arrays += [_images(rows, dataset, size), _labels(rows, dataset["label_key"])]
    return Arrays(*arrays), _class_names(train, dataset["label_key"])


def _splits(dataset: Mapping[str, Any]) -> tuple[Any, Any]:
    """The training and the test split."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("dataset=huggingface needs a package: pip install 'kdbench[huggingface]'") from error
    root, origin = dataset["root"], f"dataset.name={dataset['name']}"
    if root:
        root, origin = Path(root).expanduser(), f"dataset.root={root}"
        if dataset["subset"] is not None:
            raise UserError(f"dataset.subset={dataset['subset']}: must be null with {origin}, which has no subsets")
    try:
        with _offline(datasets):
            loaded = (
                datasets.load_from_disk(root) if root else datasets.load_dataset(dataset["name"], dataset["subset"])
            )
    except Exception as error:  # of half a dozen libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "" if root else "; kdbench reads only what datasets.load_dataset has cached before"
        raise UserError(f"{origin}: cannot be loaded: {reason}{hint}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        raise UserError(f"{origin}: is a single split; must be a DatasetDict with dataset.train_split and test_split")
    for key in ("train_split", "test_split"):
        if dataset[key] not in loaded:
            known = ", ".join(loaded)
            hint = nearest(dataset[key], loaded)
            raise UserError(f"dataset.{key}={dataset[key]}: {origin} has no such split; must be one of {known}{hint}")
    return loaded[dataset["train_split"]], loaded[dataset["test_split"]]


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Act as with the environment variable HF_HUB_OFFLINE, which the libraries read only when they are imported."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _image(value: Any, key: str, channels: int | None = None) -> Image.Image:
    """An entry of the image column, as RGB (3 channels), grey (1) or as it is (None)."""
    if not isinstance(value, Image.Image):
        raise UserError(f"dataset.image_key={key}: holds {type(value).__name__}; must be a column of the type Image")
    check_depth(value, f"dataset.image_key={key}")
    return value if channels is None else converted(value, channels)


def _first_side(rows: Any, key: str) -> int:
    if not len(rows):
        raise UserError(f"dataset.image_key={key}: there are no images")
    image = _image(rows[0][key], key)
    if image.width != image.height:
        raise UserError(
            f"dataset.image_size=null: the first image is {image.width}x{image.height}, not square; "
            "give the side in pixels to which images are cropped and resized"
        )
    return image.width


def _images(rows: Any, dataset: Mapping[str, Any], size: int) -> np.ndarray:
    key, channels = dataset["image_key"], dataset["channels"]
    images = np.empty((len(rows), size, size, channels), np.uint8)
    for i, row in enumerate(rows.select_columns(key)):
        images[i] = np.asarray(fit(_image(row[key], key, channels), size)).reshape(size, size, channels)
    return images


def _labels(rows: Any, key: str) -> np.ndarray:
    return np.asarray(rows.with_format("numpy", columns=[key])[:][key])


def _class_names(rows: Any, key: str) -> tuple[str, ...] | None:
    names = getattr(rows.features[key], "names", None)
    return tuple(names) if names else None

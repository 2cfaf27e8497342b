"""Data sets given as NumPy arrays: what is allowed, their layout, and how they become images. Imports no torch."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from kdbench.errors import UserError

CHANNELS = (1, 3)
LAYOUTS = {"nhw": "(N, H, W)", "nhwc": "(N, H, W, C)", "nchw": "(N, C, H, W)"}
_CHUNK = 1024  # images that are converted at a time, to save memory


class Arrays(NamedTuple):
    """A data set as it was read.

    Attributes:
        x_train, y_train: images and labels of the training set.
        x_test, y_test: of the test set.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


NAMES = Arrays._fields


class Header(NamedTuple):
    """Shape and type of an array that is not loaded.

    Attributes:
        shape: of the array.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: np.dtype


class HasShape(Protocol):
    """An array, or the header of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements."""
        ...


class Description(NamedTuple):
    """What is known of a data set without its images.

    Attributes:
        num_classes: number of classes.
        channels: 1 or 3.
        image_size: side of the images, in pixels.
        layout: order of the dimensions, a key of `LAYOUTS`.
    """

    num_classes: int
    channels: int
    image_size: int
    layout: str


def describe(
    x_train: HasShape, y_train: np.ndarray, x_test: HasShape, y_test: np.ndarray, layout: str | None, origin: str
) -> Description:
    """Check the arrays of a data set, except for the values of the images.

    Args:
        x_train: training images, or their header.
        y_train: (N,) training labels.
        x_test: test images, or their header.
        y_test: (N,) test labels.
        layout: `nhwc` or `nchw`; None to take the one that fits.
        origin: key and value that the arrays come from, for error messages.

    Raises:
        UserError: a shape, a type or a label is not allowed.
    """
    for name, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise UserError(f"{origin}: x_{name} is {images.dtype}; must be uint8, or float in [0, 1]")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(f"{origin}: y_{name} is {labels.dtype} of shape {labels.shape}; must be (N,) integers")
        if images.shape[:1] != labels.shape:
            count = images.shape[0] if images.shape else 0
            raise UserError(f"{origin}: x_{name} has {count} images, but y_{name} has {len(labels)} labels")
        if not len(labels):
            raise UserError(f"{origin}: x_{name} has no images")
    layout = _layout(x_train.shape, layout, origin)
    if x_test.shape[1:] != x_train.shape[1:]:
        raise UserError(
            f"{origin}: images of x_train are {x_train.shape[1:]}, those of x_test {x_test.shape[1:]}; must be the same"
        )
    height, width = x_train.shape[2:] if layout == "nchw" else x_train.shape[1:3]
    if height != width or not height:
        raise UserError(f"{origin}: the images are {height}x{width}; must be square")
    channels = {"nhw": 1, "nhwc": x_train.shape[-1], "nchw": x_train.shape[1]}[layout]
    return Description(_num_classes(y_train, y_test, origin), channels, height, layout)


def _layout(shape: tuple[int, ...], layout: str | None, origin: str) -> str:
    """The order of the dimensions of x_train."""
    if len(shape) == 3 and layout is None:
        return "nhw"
    fitting = []
    if len(shape) == 4:
        fitting = [name for name, axis in (("nhwc", 3), ("nchw", 1)) if shape[axis] in CHANNELS]
    if layout is not None:
        if layout not in fitting:
            raise UserError(
                f"dataset.layout={layout}: x_train has shape {shape}; must be {LAYOUTS[layout]} with 1 or 3 channels"
            )
        return layout
    if len(fitting) == 2:
        raise UserError(
            f"dataset.layout=null: x_train has shape {shape}, which may be {LAYOUTS['nhwc']} or {LAYOUTS['nchw']}; "
            "must be nhwc or nchw"
        )
    if not fitting:
        allowed = ", ".join(LAYOUTS.values())
        raise UserError(f"{origin}: x_train has shape {shape}; must be {allowed}, with 1 or 3 channels")
    return fitting[0]


def _num_classes(y_train: np.ndarray, y_test: np.ndarray, origin: str) -> int:
    """The largest training label + 1; every label below must occur in training."""
    present = np.unique(y_train)
    if present[0] < 0:
        raise UserError(f"{origin}: y_train has the label {present[0]}; must be 0..K-1 for K classes")
    count = int(present[-1]) + 1
    if len(present) < count:
        first = int((present != np.arange(len(present))).argmax())
        raise UserError(
            f"{origin}: {count - len(present)} of the labels 0..{count - 1} do not occur in y_train, the first is "
            f"{first}; must be 0..K-1 for K classes, each at least once"
        )
    if count < 2:
        raise UserError(f"{origin}: y_train has only the label 0; must have at least 2 classes")
    for extreme in (int(y_test.min()), int(y_test.max())):
        if not 0 <= extreme < count:
            raise UserError(f"{origin}: y_test has the label {extreme}; must be 0..{count - 1}, as in y_train")
    return count


def to_images(pixels: np.ndarray, layout: str, name: str, origin: str) -> np.ndarray:
    """Images as the loaders take them.

    Args:
        pixels: uint8, or float in [0, 1], which is rounded to 8 bits.
        layout: order of their dimensions, a key of `LAYOUTS`.
        name: of the array, for error messages.
        origin: key and value that it comes from, likewise.

    Returns:
        (N, H, W, C) uint8, contiguous.

    Raises:
        UserError: float pixels outside [0, 1], or not finite.
    """
    if layout == "nhw":
        pixels = pixels[..., None]
    elif layout == "nchw":
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # false for nan, too
        raise UserError(f"{origin}: {name} is {pixels.dtype} in [{low:g}, {high:g}]; must be in [0, 1], or uint8")
    images = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images[chunk] = np.rint(pixels[chunk].astype(np.float64) * 255)
    return images


def statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels in [0, 1], per channel, rounded to 4 digits.

    Args:
        images: (N, H, W, C) uint8.
    """
    means, deviations = [], []
    levels = np.arange(256) / 255
    for channel in range(images.shape[-1]):
        chunks = (images[start : start + _CHUNK, ..., channel] for start in range(0, len(images), _CHUNK))
        # counts of the grey values are exact, so the order of summation does not matter
        counts = _total(np.bincount(chunk.ravel(), minlength=256) for chunk in chunks)
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        means.append(round(mean, 4))
        deviations.append(round(float((share * (levels - mean) ** 2).sum()) ** 0.5, 4))
    return means, deviations


def _total(counts: Iterable[np.ndarray]) -> np.ndarray:
    total = np.zeros(256, np.int64)
    for part in counts:
        total += part
    return total

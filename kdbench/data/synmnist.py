"""Handwritten numbers for any number of classes, composed of MNIST digits.

Liu, Zhang and Wang (Learning from a Lightweight Teacher for Efficient Knowledge Distillation, arXiv
2005.09163, 2020) train the teacher of LW-KD on a simple data set of this kind, with as many classes as the target data
set. How the images are composed is our reading of the paper's abstract.
"""

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from kdbench.data import embedded
from kdbench.data.batch import Images
from kdbench.data.streams import derive

MIN_CELL = 4  # pixels: narrower digits cannot be told apart


def length(num_classes: int) -> int:
    """Number of decimal digits needed for every number below `num_classes`."""
    return len(str(num_classes - 1))


def codes(num_classes: int, map_seed: int | None) -> np.ndarray:
    """The number that the images of each class show.

    Args:
        num_classes: C.
        map_seed: seed of a random one-to-one map of classes to numbers; None maps each class to itself.

    Returns:
        (C,) int64, a permutation of 0..C-1.
    """
    if map_seed is None:
        return np.arange(num_classes)
    return np.argsort(np.random.default_rng(derive(map_seed, "synmnist", "codes")).random(num_classes))


def cells(size: int, count: int) -> list[slice]:
    """The columns of `count` cells, left to right, which divide `size` as evenly as integers allow."""
    edges = np.arange(count + 1) * size // count
    return [slice(left, right) for left, right in pairwise(edges.tolist())]


def resized(images: np.ndarray, width: int, height: int) -> np.ndarray:
    """Digits resized to a cell, antialiased.

    Args:
        images: (N, H, W, 1) uint8.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        (N, height, width) uint8.
    """
    narrow = _resized_rows(images[..., 0], width)
    return _resized_rows(narrow.transpose(0, 2, 1), height).transpose(0, 2, 1)


def _resized_rows(images: np.ndarray, width: int) -> np.ndarray:
    """(N, H, W) uint8 to (N, H, width).

    All images are resized as one tall image, because rows do not affect each other when only the width changes.
    """
    count, height, old = images.shape
    tall = Image.fromarray(images.reshape(count * height, old))
    return np.asarray(tall.resize((width, count * height), Image.Resampling.LANCZOS)).reshape(count, height, width)


@lru_cache(maxsize=2)
def load(
    num_train: int,
    num_test: int,
    num_classes: int,
    size: int,
    channels: int,
    seed: int,
    map_seed: int | None,
    digits: str,
    root: Path,
) -> tuple[Images, Images]:
    """Training and test set of images that show the number of their class, zero-padded.

    Training images are composed of training digits, test images of test digits. Validation images, which are held out
    of the training set, are therefore new numbers made of known digits, and easier than the test set. The last two data
    sets loaded stay in memory.

    Args:
        num_train: number of training images, spread evenly over the classes.
        num_test: number of test images, spread likewise.
        num_classes: number of classes; all numbers have as many decimal digits as `num_classes - 1`.
        size: side in pixels.
        channels: 1 (grey) or 3 (the grey image in each).
        seed: of the choice of digits and of the order.
        map_seed: as for `codes`.
        digits: `mnist5k` or `mnist`, where the digits come from.
        root: folder with the full MNIST.

    Returns:
        Images (N, size, size, channels) uint8, in random class order; the arrays are read-only. Classes are named by
        their number.

    Raises:
        UserError: the package with `mnist5k` is not installed.
        RuntimeError: the full MNIST is missing or damaged.
        OSError: the disk fails.
    """
    count = length(num_classes)
    code = codes(num_classes, map_seed)
    classes = tuple(str(number).zfill(count) for number in code)
    # (C, count) int64: the decimal digits of the number of each class
    decimals = code[:, None] // 10 ** np.arange(count)[::-1] % 10

    def draw(name: str, source: Images, total: int) -> Images:
        rng = np.random.default_rng(derive(seed, "synmnist", name))
        labels = np.argsort(np.argsort(rng.random(total))) % num_classes
        chosen = _choose(source.labels, decimals[labels], rng)
        images = _compose(source.images, chosen, size)[..., None].repeat(channels, axis=3)
        for array in (images, labels):
            array.setflags(write=False)  # the cache returns the same arrays again
        return Images(images, labels, classes)

    train, test = _digits(digits, root)
    return draw("train", train, num_train), draw("test", test, num_test)


def _choose(labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position in `labels` of a random sample of each wanted digit: int64, in the shape of `wanted`."""
    by_digit, totals = np.argsort(labels, kind="stable"), np.bincount(labels, minlength=10)
    first = np.cumsum(totals) - totals
    return by_digit[first[wanted] + (rng.random(wanted.shape) * totals[wanted]).astype(np.int64)]


def _compose(images: np.ndarray, chosen: np.ndarray, size: int) -> np.ndarray:
    """The chosen (N, K) of the images (M, H, W, 1), K side by side: (N, size, size) uint8."""
    canvas = np.empty((len(chosen), size, size), np.uint8)
    columns = cells(size, chosen.shape[1])
    for width in {c.stop - c.start for c in columns}:
        same = [i for i, c in enumerate(columns) if c.stop - c.start == width]
        used, position = np.unique(chosen[:, same], return_inverse=True)
        digits = resized(images[used], width, size)
        for cell, digit in zip(same, position.reshape(-1, len(same)).T, strict=True):
            canvas[:, :, columns[cell]] = digits[digit]
    return canvas


def _digits(digits: str, root: Path) -> tuple[Images, Images]:
    if digits == "mnist5k":
        return embedded.load(digits)
    from kdbench.data import torchvision_sets

    return torchvision_sets.load(digits, root)

"""The types that pass through this package: a set of images, a part of it for a loader, a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # the sources import this module, and they work without torch
    from torch import Tensor


class Images(NamedTuple):
    """The training or the test set of a source as it is stored: no subset, no noise, no split.

    Attributes:
        images: (N, H, W, C) uint8, or (N,) file names as bytes where the images stay on disk.
        labels: (N,) int64.
        classes: names of the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class Batch(NamedTuple):
    """One batch, on the training device.

    Attributes:
        images: (B, C, H, W) float32 in [0, 1], channels_last, *not* normalised: every network normalises its own
            input.
        labels: (B,) int64; with label noise in training and, unless `noise.clean_validation`, in validation.
        index: (B,) int64, position in the source's training (or test) set, regardless of subset and split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Part(NamedTuple):
    """One part of a data set (train, val or test), ready for a loader.

    Attributes:
        images: (N, H, W, C) uint8, or (N,) file names as bytes.
        labels: (N,) int64.
        index: (N,) int64, position in the source's training (or test) set.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]


class Training(NamedTuple):
    """How a training loader shuffles and augments; it also drops the last partial batch.

    Attributes:
        seed: the run's seed.
        crop_padding: pixels added on each side before the random crop; None for a random resized crop.
        padding_mode: `zero` (black) or `reflect`.
        flip: mirror each image with probability 1/2.
    """

    seed: int
    crop_padding: int | None
    padding_mode: str
    flip: bool


class Loader(Protocol):
    """What both loaders offer; Lightning's Trainer accepts it as is."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration uses."""
        ...

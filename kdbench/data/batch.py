"""What flows through the room: a set of images, a part of it ready to be loaded, a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # the sources import this module, and they work without torch
    from torch import Tensor


class Images(NamedTuple):
    """The training or the test set of a source, as it lies on disk: no subset, no noise, no split.

    Attributes:
        images: (N, H, W, C) uint8, or (N,) file names as bytes where the images stay on disk.
        labels: (N,) int64.
        classes: Names of the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class Batch(NamedTuple):
    """One batch, on the training device.

    Attributes:
        images: (B, C, H, W) float32 in [0, 1], channels_last, *not* normalised: every network does that
            itself.
        labels: (B,) int64, with the label noise of the setting in training and validation.
        index: (B,) int64, position in the source's training (or test) set, whatever the subset or split.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Part(NamedTuple):
    """One part of a data set (train, val or test), ready for a loader.

    Attributes:
        images: (N, H, W, C) uint8, or (N,) file names as bytes.
        labels: (N,) int64.
        index: (N,) int64, position in the source set.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]


class Training(NamedTuple):
    """What makes a loader a training loader: shuffled, augmented, its last partial batch dropped.

    Attributes:
        seed: The run's data seed.
        crop_padding: Pixels added on each side before the random crop; None is the random resized crop.
        padding_mode: ``zero`` (black) or ``reflect``.
        flip: Mirror every other image, at random.
    """

    seed: int
    crop_padding: int | None
    padding_mode: str
    flip: bool


class Loader(Protocol):
    """What both loaders offer; Lightning's Trainer accepts it as it is."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration draws."""
        ...

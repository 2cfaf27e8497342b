"""The types that pass through this package: a set of images, a part of it for a loader, a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from kdbench.data.views import views_of

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


class Mixed(NamedTuple):
    """What mixup or CutMix has added to the images of a batch.

    Attributes:
        labels: (B,) int64, of the images that were mixed in.
        share: scalar float32 in [0, 1], the share of the batch's own images and labels; the rest is the others'.
    """

    labels: Tensor
    share: Tensor


class Batch(NamedTuple):
    """One batch, on the training device.

    Attributes:
        images: (B, C, H, W) float32 in [0, 1], channels_last, *not* normalised: every network normalises its own
            input.
        labels: (B,) int64; with label noise in training and, unless `noise.clean_validation`, in validation.
        index: (B,) int64, position in the source's training (or test) set, regardless of subset and split.
        mixed: what was mixed in; None where nothing was. `labels` and `index` are those of the batch's own images.
        views: (B,) int64, which view of its image each is: crops and flips of all training images are counted through.
            None where they cannot be counted.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    mixed: Mixed | None = None
    views: Tensor | None = None

    def over_labels(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """The value for the labels of the batch; in a mixed batch, the weighted mean of those for both labels.

        Args:
            value: from labels (B,) to a tensor.
        """
        own = value(self.labels)
        if self.mixed is None:
            return own
        return self.mixed.share * own + (1 - self.mixed.share) * value(self.mixed.labels)


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
        augment: `none`, or a name of `augmentation.POLICIES`: random operations after crop and flip.
    """

    seed: int
    crop_padding: int | None
    padding_mode: str
    flip: bool
    augment: str = "none"

    @property
    def views(self) -> int | None:
        """Number of different views of an image; None where they cannot be counted."""
        return views_of(self.crop_padding, self.flip, self.augment)


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

"""Mixup and CutMix: the images of a batch are mixed with others of the batch, and so are their labels.

Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv 1710.09412).
CutMix: Yun et al., ICCV 2019 (arXiv 1905.04899).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdbench.data.batch import Batch, Mixed
from kdbench.data.streams import derive


class Draws(NamedTuple):
    """What is drawn for the N batches of an epoch.

    Attributes:
        cut: (N,) bool, whether the batch has CutMix; otherwise it has mixup.
        boxes: (N,4) int64, of CutMix: first row, first column, end of the rows, end of the columns.
        shares: (N,) float64, the share of the batch's own images; with CutMix, exactly that of its pixels.
        partners: (N,B) int64, a permutation of each batch.
    """

    cut: np.ndarray
    boxes: np.ndarray
    shares: np.ndarray
    partners: np.ndarray


class Mixing:
    """Mixup and CutMix on finished batches, on the device.

    Each batch has one share and one permutation, as in the authors' code; with both, one of the two with probability
    1/2, as in timm.

    Args:
        mixup: alpha of its Beta(alpha, alpha); 0 for none.
        cutmix: likewise; one of the two is above 0.
        size: side of the images, in pixels.
        seed: of the run.
        device: of the batches.
    """

    def __init__(self, mixup: float, cutmix: float, size: int, seed: int, device: torch.device) -> None:
        self.mixup, self.cutmix, self.size, self.seed, self.device = mixup, cutmix, size, seed, device

    def draw(self, epoch: int, number: int, batch_size: int) -> Draws:
        """Draw for an epoch of so many batches."""
        rng, size = np.random.default_rng(derive(self.seed, "mixing", epoch)), self.size
        chance = 0.5 if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = rng.random(number) < chance
        alpha = np.where(cut, self.cutmix, self.mixup)
        shares = rng.beta(alpha, alpha)
        half = (size * np.sqrt(1 - shares)).astype(int)[:, None] // 2
        centre = rng.integers(size, size=(number, 2))
        boxes = np.concatenate([centre - half, centre + half], axis=1).clip(0, size)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        partners = rng.permuted(np.tile(np.arange(batch_size), (number, 1)), axis=1)
        return Draws(cut, boxes, np.where(cut, 1 - areas / size**2, shares), partners)

    def __call__(self, batches: Iterator[Batch], epoch: int, number: int, batch_size: int) -> Iterator[Batch]:
        """The batches of an epoch, mixed; arguments as for `Covering`."""
        cut, boxes, *columns = self.draw(epoch, number, batch_size)
        # to the device once an epoch: a step must not wait for it
        shares, partners = (torch.from_numpy(column).to(self.device) for column in columns)
        plans = zip(batches, cut, boxes.tolist(), shares.float(), partners, strict=True)
        for batch, cutmix, box, share, partner in plans:
            if cutmix:
                images = cut_in(batch.images, batch.images[partner], box)
            else:
                images = blend(batch.images, batch.images[partner], share)
            yield batch._replace(images=images, mixed=Mixed(batch.labels[partner], share))


def cut_in(images: Tensor, partners: Tensor, box: Sequence[int]) -> Tensor:
    """CutMix: the images (B,C,H,W) with a box of their partners, one row of `Draws.boxes`."""
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


def blend(images: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Mixup: share times the images (B,C,H,W) plus the rest of their partners."""
    return (share * images + (1 - share) * partners).contiguous(memory_format=torch.channels_last)

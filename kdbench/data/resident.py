"""The loader of small data sets: every image on the training device, augmentation in one gather per batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augmentation import Policy
from kdbench.data.batch import Batch, Part, Training
from kdbench.data.streams import derive


def stream(seed: int, *names: str | int) -> torch.Generator:
    """CPU generator of one stateless random stream; arguments as for `derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def to_images(pixels: Tensor) -> Tensor:
    """(B, H, W, C) uint8 to (B, C, H, W) float32 in [0, 1], channels_last without reordering memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


class ResidentLoader:
    """Batches from one uint8 tensor that stays on the training device.

    For training, the images are padded once. Order, crop offsets and flips of a whole epoch are drawn at its start from
    (seed, epoch) alone; a batch is then one gather of pixels, without any host synchronisation. The last partial
    training batch is dropped (a short batch changes relational losses and batch norm), so an epoch leaves out
    `N % batch_size` images, different ones each time. Evaluation drops none.
    The random operations of `augment` are applied to one image after the other, which costs more than all the rest (0.4
    to 0.7 ms for an image of 32x32 on one CPU core); the streaming loader spreads them over its workers.

    Args:
        part: images as (N, H, W, C) uint8, H = W.
        batch_size: samples in a batch.
        device: where the images and the batches are.
        training: shuffling and augmentation; None keeps order and images as they are.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        device: torch.device | str = "cpu",
        training: Training | None = None,
    ) -> None:
        self.batch_size, self.device, self.training = batch_size, torch.device(device), training
        self.epoch = 0
        images, size, padding = part.images, part.images.shape[1], 0
        if training and training.crop_padding:
            padding = training.crop_padding
            mode = "constant" if training.padding_mode == "zero" else "reflect"
            images = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)  # type: ignore[call-overload]
        self._count, self._shifts, self._side = len(images), 2 * padding + 1, size + 2 * padding
        self._pixels = self._to_device(np.ascontiguousarray(images).reshape(-1, images.shape[3]))
        self._labels, self._index = self._to_device(part.labels), self._to_device(part.index)
        self._policy, self._numbers = Policy.of(training), torch.from_numpy(part.index)
        window = torch.arange(size)[:, None] * self._side + torch.arange(size)
        # pixel numbers of a crop relative to its corner, plain and mirrored: (2, H, W)
        self._windows = torch.stack([window, window.flip(1)]).to(self.device)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._count // self.batch_size if self.training else -(-self._count // self.batch_size)

    batch_sampler = None  # Lightning looks for it on objects that have a sampler

    @property
    def sampler(self) -> "ResidentLoader":
        """The loader itself: Lightning's Trainer calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration uses."""
        self.epoch = epoch

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Order of the samples; first pixel, flip (0 or 1) and number of each one's view: (N,) int64 each."""
        samples = torch.arange(self._count)
        if self.training is None:
            nothing = torch.zeros_like(samples)
            return samples, samples * self._side**2, nothing, nothing
        seed, epoch = self.training.seed, self.epoch
        order = torch.randperm(self._count, generator=stream(seed, "order", epoch))
        shift = torch.randint(self._shifts, (2, self._count), generator=stream(seed, "crop", epoch))
        flip = torch.randint(1 + self.training.flip, (self._count,), generator=stream(seed, "flip", epoch))
        crop = shift[0] * self._shifts + shift[1]
        view = crop * (1 + self.training.flip) + flip
        first, flip = self._place(samples, view)
        return order, first[order], flip[order], self._counted(samples, view)[order]

    def _place(self, samples: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """First pixel, and flip (0 or 1), of views of samples, each numbered among those of its image."""
        assert self.training is not None
        flips = 1 + self.training.flip
        crop = views // flips
        return samples * self._side**2 + crop // self._shifts * self._side + crop % self._shifts, views % flips

    def _counted(self, samples: Tensor, views: Tensor) -> Tensor:
        """The numbers of views among those of all images of the source."""
        assert self.training is not None
        return self._numbers[samples] * self._shifts**2 * (1 + self.training.flip) + views

    def views(self, samples: Tensor, views: Tensor) -> Batch:
        """Chosen views of chosen samples, as they are in the batches of an epoch.

        Args:
            samples: (B,) int64 on the CPU, positions in the part.
            views: (B,) int64 on the CPU, each in [0, `training.views`): which view of its image.
        """
        first, flip = (column.to(self.device) for column in self._place(samples, views))
        there = samples.to(self.device)
        numbers = self._counted(samples, views).to(self.device)
        return Batch(to_images(self._gather(first, flip)), self._labels[there], self._index[there], views=numbers)

    def _gather(self, first: Tensor, flip: Tensor) -> Tensor:
        """Pixels (B,H,W,C) uint8 of crops, from first pixel and flip of each."""
        positions = first[:, None, None] + self._windows[flip]
        # index_select: on the CPU 30 times as fast as indexing with brackets
        return self._pixels.index_select(0, positions.view(-1)).view(*positions.shape, -1)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch; the epoch is read when the first batch is requested."""
        epoch, drawn = self.epoch, self._draw()
        numbers = self._numbers[drawn[0]]
        order, corner, flip, view = (column.to(self.device) for column in drawn)
        columns = (corner, flip, self._labels[order], self._index[order], view, numbers)
        counted = self.training is not None and self.training.views is not None
        for _, first, flipped, labels, index, views, batch_numbers in zip(
            range(len(self)), *(column.split(self.batch_size) for column in columns), strict=False
        ):
            pixels = self._gather(first, flipped)
            if self._policy is not None:
                pixels = self._operate(self._policy, pixels, epoch, batch_numbers.tolist())
            yield Batch(to_images(pixels), labels, index, views=views if counted else None)

    @staticmethod
    def _operate(policy: Policy, pixels: Tensor, epoch: int, numbers: list[int]) -> Tensor:
        """Apply a policy to images (B,H,W,C), of which `numbers` are the positions in the source."""
        images = zip(pixels.permute(0, 3, 1, 2), numbers, strict=True)
        return torch.stack([policy(image, epoch, number).permute(1, 2, 0) for image, number in images])

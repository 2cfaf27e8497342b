"""The loader of large data sets: images stay on disk; worker processes read, crop and augment them."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdbench.data.augmentation import Policy
from kdbench.data.batch import Batch, Part, Training
from kdbench.data.folder import fit, open_image
from kdbench.data.resident import stream, to_images
from kdbench.data.streams import derive
from kdbench.errors import UserError

TEST_BORDER = 0.0625  # fraction cut off at each edge: the usual centre crop of 224 from 256


class StreamingLoader:
    """Batches read from disk by worker processes, then moved to the training device.

    Order and augmentation of a sample depend on (seed, epoch, index) alone, not on the number of workers.
    With `crop_padding` the augmentation is that of the resident loader; without it, that of ImageNet: a random resized
    crop in training, the central 7/8 in evaluation. The last partial training batch is dropped; evaluation drops none.

    Args:
        part: file names, or images as (N, H, W, C) uint8.
        size: side of the images in a batch, in pixels.
        channels: 1 (grey) or 3 (RGB).
        batch_size: samples in a batch.
        device: where the batches go.
        training: shuffling and augmentation; None keeps order and images as they are.
        border: fraction of the image that is cut off at each edge before it is resized; unused by a random resized
            crop.
        workers: maximum number of worker processes; 0 reads in the training process.
    """

    batch_sampler = None  # Lightning looks for it on objects that have a sampler

    def __init__(
        self,
        part: Part,
        size: int,
        channels: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        training: Training | None = None,
        border: float = 0.0,
        workers: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self.sampler = _Order(len(part.labels), training)
        self._loader = DataLoader(
            _Samples(part, size, channels, training, border),
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=min(workers, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
            drop_last=training is not None,
            generator=torch.Generator(),  # without it, the global generator would be used, which belongs to the model
        )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration uses."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch; the epoch is read when the first batch is requested."""
        try:
            for batch in self._loader:
                images, labels, index = (tensor.to(self.device, non_blocking=True) for tensor in batch)
                yield Batch(to_images(images), labels, index)
            return
        except UserError as error:  # raised in a worker: the message is the last line of a traceback
            line = str(error).strip().splitlines()[-1]
            error.__traceback__ = None  # a traceback would keep the workers alive
        raise UserError(line.removeprefix("kdbench.errors.UserError: "))


class _Order(Sampler[tuple[int, int]]):
    """Pairs of epoch and position, so that a worker knows the epoch of each sample."""

    def __init__(self, count: int, training: Training | None) -> None:
        self.count, self.training, self.epoch = count, training, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.arange(self.count)
        if self.training:
            order = torch.randperm(self.count, generator=stream(self.training.seed, "order", self.epoch))
        yield from ((self.epoch, position) for position in order.tolist())


class _Samples(Dataset[tuple[Tensor, int, int]]):
    """Samples: image (size, size, C) uint8, label, index."""

    def __init__(self, part: Part, size: int, channels: int, training: Training | None, border: float) -> None:
        self.part, self.training = part, training
        self.size, self.channels, self.border = size, channels, border
        self.augment = _augmentation(size, training) if training else None
        self.policy = Policy.of(training)
        # a random resized crop is taken from the original image
        self.crops_original = training is not None and training.crop_padding is None

    def _read(self, position: int) -> Image.Image:
        stored = self.part.images[position]
        if isinstance(stored, bytes):
            return open_image(stored, self.channels)
        return Image.fromarray(stored[..., 0] if self.channels == 1 else stored)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, position = item
        label, index = int(self.part.labels[position]), int(self.part.index[position])
        image = self._read(position)
        if not self.crops_original:
            image = fit(image, self.size, self.border)
        if self.training and self.augment:
            with torch.random.fork_rng(devices=[]):
                # not torch.manual_seed, which would also change the generators of the GPU
                torch.default_generator.manual_seed(derive(self.training.seed, "augmentation", epoch, index))
                image = self.augment(image)
        pixels = np.array(image, dtype=np.uint8).reshape(self.size, self.size, self.channels)
        tensor = torch.from_numpy(pixels)
        if self.policy is not None:
            tensor = self.policy(tensor.permute(2, 0, 1), epoch, index).permute(1, 2, 0)
        return tensor, label, index


def _augmentation(size: int, training: Training) -> torch.nn.Sequential:
    from torchvision.transforms import v2  # here, because most runs keep their images in memory

    steps: list[torch.nn.Module] = []
    if training.crop_padding is None:
        steps.append(v2.RandomResizedCrop(size))
    elif training.crop_padding:
        mode = "constant" if training.padding_mode == "zero" else "reflect"
        steps.append(v2.RandomCrop(size, padding=training.crop_padding, padding_mode=mode))
    if training.flip:
        steps.append(v2.RandomHorizontalFlip())
    return torch.nn.Sequential(*steps)

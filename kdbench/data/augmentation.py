"""Augmentation of training images after crop and flip: random operations, erased rectangles, squares cut out."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kdbench.data.batch import Batch, Training
from kdbench.data.streams import derive

# Cubuk et al., "RandAugment", 2020 (arXiv 1909.13719); Müller & Hutter, "TrivialAugment", 2021 (arXiv 2103.10158)
# The class in torchvision.transforms.v2, and its arguments.
POLICIES: dict[str, tuple[str, dict[str, int]]] = {
    "randaugment": ("RandAugment", {"num_ops": 2, "magnitude": 9}),
    "trivialaugment": ("TrivialAugmentWide", {}),
}
# Of an erased rectangle: share of the image, and ratio of its height to its width.
_AREA, _RATIO = (0.02, 0.33), (0.3, 3.3)


class Policy:
    """Random operations on single images, drawn from (seed, epoch, index) alone.

    Args:
        name: one of `POLICIES`.
        seed: of the run.
    """

    def __init__(self, name: str, seed: int) -> None:
        from torchvision.transforms import v2  # here, because most runs do not need it

        kind, arguments = POLICIES[name]
        self.transform, self.seed = getattr(v2, kind)(**arguments), seed

    @classmethod
    def of(cls, training: Training | None) -> "Policy | None":
        """The policy of a training loader, if it has one."""
        return None if training is None or training.augment == "none" else cls(training.augment, training.seed)

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """The image after the operations.

        Args:
            image: (C,H,W) uint8, C = 1 or 3.
            epoch: counted from 0.
            index: position of the image in the source.
        """
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would also change the generators of the GPU
            torch.default_generator.manual_seed(derive(self.seed, "policy", epoch, index))
            return self.transform(image)


def erased_rectangles(count: int, size: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Rectangles of random erasing: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020 (arXiv 1708.04896).

    The share of the area and the logarithm of the ratio of the sides are uniform, as in torchvision and timm (the
    authors draw the ratio itself), and so is the position. A side that would be longer than the image is as long as the
    image; the authors draw again.

    Args:
        count: N.
        size: side of the images, in pixels.
        probability: of a rectangle; without one, it is empty.
        rng: the random stream.

    Returns:
        (N,4) int64: first row, first column, end of the rows, end of the columns.
    """
    erased = rng.random(count) < probability
    area = rng.uniform(*_AREA, count)
    root = np.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), count) / 2)
    exact = size * np.sqrt(area)[:, None] * np.stack([root, 1 / root], axis=1)
    sides = exact.round().clip(1, size).astype(np.int64)
    first = rng.integers(size - sides + 1)
    return np.concatenate([first, first + sides], axis=1) * erased[:, None]


def cutout_rectangles(count: int, size: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Squares of Cutout: DeVries & Taylor, "Improved Regularization of CNNs with Cutout", 2017 (arXiv 1708.04552).

    The centre is any pixel of the image; what is outside of the image is lost, as in the authors' code.

    Args:
        count: N.
        size: side of the images, in pixels.
        side: of the square, in pixels.
        rng: the random stream.

    Returns:
        (N,4) int64, as `erased_rectangles`.
    """
    first = rng.integers(size, size=(count, 2)) - side // 2
    return np.concatenate([first, first + side], axis=1).clip(0, size)


def fill(images: Tensor, rectangles: Tensor, colour: Tensor) -> Tensor:
    """Images with rectangles of one colour.

    Args:
        images: (B,C,H,W), channels_last, H = W.
        rectangles: (B,R,4), on the same device, as `erased_rectangles`.
        colour: (C,1,1).
    """
    place = torch.arange(images.shape[-1], device=images.device)
    first, end = rectangles[..., :2, None], rectangles[..., 2:, None]
    rows, columns = ((place >= first) & (place < end)).unbind(2)  # (B,R,H) and (B,R,W)
    inside = (rows[..., :, None] & columns[..., None, :]).any(1)
    filled = torch.where(inside[:, None], colour, images)
    return filled.contiguous(memory_format=torch.channels_last)


class Covering:
    """Random erasing and Cutout on finished batches, on the device.

    Args:
        erasing: probability of erasing a rectangle of an image.
        cutout: side of the square that is cut out of each image; 0 for none.
        mean: colour of both, one value per channel: 0 after normalisation.
        size: side of the images, in pixels.
        seed: of the run.
        device: of the batches.
    """

    def __init__(
        self, erasing: float, cutout: int, mean: Sequence[float], size: int, seed: int, device: torch.device
    ) -> None:
        self.erasing, self.cutout, self.size, self.seed, self.device = erasing, cutout, size, seed, device
        self.colour = torch.tensor(mean, device=device)[:, None, None]

    def draw(self, epoch: int, count: int) -> Tensor:
        """Rectangles (N,R,4) for the images of an epoch, in the order of its batches."""
        rectangles = []
        if self.erasing:
            rng = np.random.default_rng(derive(self.seed, "erasing", epoch))
            rectangles.append(erased_rectangles(count, self.size, self.erasing, rng))
        if self.cutout:
            rng = np.random.default_rng(derive(self.seed, "cutout", epoch))
            rectangles.append(cutout_rectangles(count, self.size, self.cutout, rng))
        return torch.from_numpy(np.stack(rectangles, axis=1))

    def __call__(self, batches: Iterator[Batch], epoch: int, number: int, batch_size: int) -> Iterator[Batch]:
        """The batches of an epoch, covered.

        Args:
            batches: of the epoch.
            epoch: counted from 0.
            number: of batches.
            batch_size: images in each of them.
        """
        rectangles = self.draw(epoch, number * batch_size).to(self.device)
        for batch, covered in zip(batches, rectangles.split(batch_size), strict=True):
            yield batch._replace(images=fill(batch.images, covered, self.colour))

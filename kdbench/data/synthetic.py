"""A learnable synthetic data set, for tests and first experiments."""

import numpy as np

from kdbench.data.batch import Images
from kdbench.data.streams import derive

CELLS = 4  # each class is a pattern of CELLS x CELLS uniform patches
NOISE = 0.25  # standard deviation of the pixel noise; the patterns are in [0, 1]


def load(num_train: int, num_test: int, num_classes: int, size: int, channels: int, seed: int) -> tuple[Images, Images]:
    """Training and test set of images that show the random patchwork of their class plus Gaussian noise.

    Args:
        num_train: number of training images, spread evenly over the classes.
        num_test: number of test images.
        num_classes: number of classes.
        size: side in pixels.
        channels: number of colour channels.
        seed: of the patterns and the noise.

    Returns:
        Images (N, size, size, channels) uint8, in random class order.
    """
    patterns = np.random.default_rng(derive(seed, "fake")).random((num_classes, CELLS, CELLS, channels))
    cell = np.arange(size) * CELLS // size
    patterns = patterns[:, cell][:, :, cell]
    classes = tuple(f"class{i}" for i in range(num_classes))

    def draw(name: str, count: int) -> Images:
        rng = np.random.default_rng(derive(seed, "fake", name))
        labels = np.argsort(np.argsort(rng.random(count))) % num_classes
        noisy = patterns[labels] + NOISE * rng.standard_normal((count, size, size, channels))
        return Images((255 * noisy.clip(0, 1)).round().astype(np.uint8), labels, classes)

    return draw("train", num_train), draw("test", num_test)

"""A data set that is drawn, not read: noisy grey stripes in one of four directions, which is the class."""

from pathlib import Path

import numpy as np

# class -> steps to the right and down along which the brightness rises
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def _draw(count: int, size: int, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % len(DIRECTIONS)
    right, down = np.array(DIRECTIONS)[labels].T[..., None, None]
    rows, columns = np.mgrid[:size, :size]
    period, phase = rng.uniform(3, 6, (count, 1, 1)), rng.uniform(0, 1, (count, 1, 1))
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * ((right * columns + down * rows) / period + phase))
    images = np.clip(waves + noise * rng.standard_normal(waves.shape), 0, 1)
    return np.round(255 * images).astype(np.uint8), labels


def read(
    root: Path | None, train: int = 800, test: int = 200, size: int = 8, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a training and a test set; the same options give the same images.

    Args:
        root: `dataset.root`, which must be null: nothing is read.
        train: number of training images.
        test: number of test images.
        size: side of the images, in pixels.
        noise: standard deviation of the Gaussian noise; the brightness is between 0 and 1.
        seed: of the drawing.

    Returns:
        x_train (train, size, size) uint8, y_train (train,), x_test and y_test.

    Raises:
        ValueError: a root is given, or there are fewer images than classes.
    """
    if root is not None:
        raise ValueError(f"dataset.root={root} must be null: nothing is read")
    if min(train, test) < len(DIRECTIONS):
        raise ValueError(f"train={train} and test={test} must both be >= {len(DIRECTIONS)}, the number of classes")
    rng = np.random.default_rng(seed)
    return *_draw(train, size, noise, rng), *_draw(test, size, noise, rng)

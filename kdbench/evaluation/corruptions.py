"""CIFAR-10-C, CIFAR-100-C and data sets of the same format: Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261.

A folder with `labels.npy` and one `<corruption>.npy` per corruption: uint8 (5 N, H, W, C), the N test images at
severity 1, then at severity 2, and so on up to 5. Does not import torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.data.label_files import named_errors
from kdbench.errors import UserError

SEVERITIES = 5
# in the order of the paper
BENCHMARK = tuple(
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression".split()
)
# meant for choosing hyper-parameters, and therefore not part of the benchmark's mean
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


class Corrupted(NamedTuple):
    """The test images under one corruption.

    Attributes:
        corruption: name of the corruption.
        severity: 1 to 5.
        images: (N,H,W,C) uint8 in the order of the test set, in memory.
    """

    corruption: str
    severity: int
    images: np.ndarray


def check(folder: Path, labels: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    """The corruptions in a folder: those of the benchmark, then the extra ones, then others in alphabetical order.

    Args:
        folder: the folder given by the user.
        labels: (N,) integers, the labels of the test set.
        shape: (H, W, C) of the test images.

    Raises:
        UserError: the folder or a file is missing, a file cannot be read without pickle or has the wrong format, or the
            labels are not those of the test set, repeated five times.
    """
    if not folder.is_dir():
        raise UserError(f"corruptions={folder}: the folder does not exist")
    names = {path.stem for path in folder.glob("*.npy")}
    if "labels" not in names:
        raise UserError(f"corruptions={folder}: labels.npy is missing")
    names.remove("labels")
    if not names:
        raise UserError(f"corruptions={folder}: contains no <corruption>.npy, such as {BENCHMARK[0]}.npy")
    _check_labels(folder, labels)
    known = [name for name in (*BENCHMARK, *EXTRA) if name in names]
    corruptions = known + sorted(names.difference(known))
    expected_shape = (SEVERITIES * len(labels), *shape)
    for name in corruptions:
        images = _memory_mapped(folder, name)
        if images.dtype != np.uint8 or images.shape != expected_shape:
            raise UserError(
                f"corruptions={folder / name}.npy: {images.dtype} of shape {images.shape}; must be uint8 of shape "
                f"{expected_shape}"
            )
    return corruptions


def _check_labels(folder: Path, labels: np.ndarray) -> None:
    actual = _memory_mapped(folder, "labels")
    expected = np.tile(labels, SEVERITIES)
    path = folder / "labels.npy"
    if actual.dtype.kind not in "iu" or actual.shape != expected.shape:
        raise UserError(
            f"corruptions={path}: {actual.dtype} of shape {actual.shape}; must be integers of shape {expected.shape}, "
            f"for {SEVERITIES} severities of {len(labels)} test images"
        )
    if len(wrong := np.flatnonzero(actual != expected)):
        severity, image = divmod(int(wrong[0]), len(labels))
        raise UserError(
            f"corruptions={path}: severity {severity + 1}: label {actual[wrong[0]]} at image {image}; must be "
            f"{labels[image]}, as in the test set"
        )


def corrupted(folder: Path, names: Sequence[str]) -> Iterator[Corrupted]:
    """The test images under each corruption at severities 1 to 5; only one set is in memory at a time.

    Args:
        folder: a folder that `check` accepts.
        names: names of the corruptions.

    Raises:
        UserError: a file cannot be read without pickle.
    """
    for name in names:
        for severity, images in enumerate(np.split(_memory_mapped(folder, name), SEVERITIES), start=1):
            yield Corrupted(name, severity, np.array(images))


def _memory_mapped(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    with named_errors("corruptions", path):
        return np.lib.format.open_memmap(path, mode="r")


def summary(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Unweighted mean accuracy over severities and over the corruptions of the benchmark that were evaluated.

    This is not the paper's mCE, which divides the error under each corruption by AlexNet's on ImageNet-C.

    Args:
        accuracies: corruption -> accuracies at severities 1 to 5, as fractions.

    Returns:
        `accuracy`; `error` = 1 - accuracy; `severities`, the accuracy at each severity; `averaged`, the names of the
        corruptions in the mean. None if no corruption of the benchmark was evaluated.
    """
    averaged = [name for name in BENCHMARK if name in accuracies]
    if not averaged:
        return None
    table = np.array([accuracies[name] for name in averaged], np.float64)
    accuracy = float(table.mean())
    return {
        "accuracy": accuracy,
        "error": 1 - accuracy,
        "severities": table.mean(0).tolist(),
        "averaged": averaged,
    }

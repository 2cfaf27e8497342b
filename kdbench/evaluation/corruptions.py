"""CIFAR-10-C and CIFAR-100-C, or another set of their form: Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261.

A folder with `labels.npy` and one `<corruption>.npy` for each corruption: uint8 (5 N, H, W, C), the N test images at
severity 1, then at 2, up to 5. Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.data.label_files import named_errors
from kdbench.errors import UserError

SEVERITIES = 5
# in the paper's order
BENCHMARK = tuple(
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression".split()
)
# for choosing hyper-parameters, hence no part of the benchmark's mean
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


class Corrupted(NamedTuple):
    """The test images under one corruption.

    Attributes:
        corruption: its name.
        severity: 1 to 5.
        images: (N,H,W,C) uint8, in the order of the test set, in memory.
    """

    corruption: str
    severity: int
    images: np.ndarray


def check(folder: Path, labels: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    """The corruptions of a folder: those of the benchmark, the extra ones, then others by name.

    Args:
        folder: the user's.
        labels: (N,) of the test set, integers.
        shape: (H, W, C) of its images.

    Raises:
        UserError: the folder or a file is missing or cannot be read without pickle, has another form, or its labels
            are not those of the test set five times over.
    """
    if not folder.is_dir():
        raise UserError(f"corruptions={folder}: no such folder")
    names = {path.stem for path in folder.glob("*.npy")}
    if "labels" not in names:
        raise UserError(f"corruptions={folder}: has no labels.npy")
    if not (found := names - {"labels"}):
        raise UserError(f"corruptions={folder}: has no <corruption>.npy, e.g. {BENCHMARK[0]}.npy")
    _check_labels(folder, labels)
    known = [name for name in (*BENCHMARK, *EXTRA) if name in found]
    ordered = known + sorted(found.difference(known))
    wanted = (SEVERITIES * len(labels), *shape)
    for name in ordered:
        images = _mapped(folder, name)
        if images.dtype != np.uint8 or images.shape != wanted:
            raise UserError(
                f"corruptions={folder / name}.npy: {images.dtype} of shape {images.shape}; must be uint8 of shape "
                f"{wanted}"
            )
    return ordered


def _check_labels(folder: Path, labels: np.ndarray) -> None:
    found = _mapped(folder, "labels")
    wanted = np.tile(labels, SEVERITIES)
    path = folder / "labels.npy"
    if found.dtype.kind not in "iu" or found.shape != wanted.shape:
        raise UserError(
            f"corruptions={path}: {found.dtype} of shape {found.shape}; must be integers of shape {wanted.shape}, "
            f"{SEVERITIES} severities of {len(labels)} test images"
        )
    if len(wrong := np.flatnonzero(found != wanted)):
        severity, image = divmod(int(wrong[0]), len(labels))
        raise UserError(
            f"corruptions={path}: severity {severity + 1}: label {found[wrong[0]]} at image {image}; must be "
            f"{labels[image]}, as in the test set"
        )


def corrupted(folder: Path, names: Sequence[str]) -> Iterator[Corrupted]:
    """The test images under each corruption, at severities 1 to 5; one at a time in memory.

    Args:
        folder: a checked one.
        names: of its corruptions.

    Raises:
        UserError: a file cannot be read without pickle.
    """
    for name in names:
        for severity, images in enumerate(np.split(_mapped(folder, name), SEVERITIES), start=1):
            yield Corrupted(name, severity, np.array(images))


def _mapped(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.npy"
    with named_errors("corruptions", path):
        return np.lib.format.open_memmap(path, mode="r")


def summary(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Mean over the benchmark's corruptions that were scored, and the severities; all count alike.

    Not the paper's mCE, which divides each corruption's error by AlexNet's: those figures are for ImageNet-C.

    Args:
        accuracies: of each corruption, at severities 1 to 5, fractions.

    Returns:
        `accuracy` and `error` = 1 - accuracy; `severities`, the accuracy at each; `averaged`, the names of the
        corruptions that went in. None where none of the benchmark's was scored.
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

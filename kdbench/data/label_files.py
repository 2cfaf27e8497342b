"""Labels and transition matrices from a user's own files. Nothing that is read here can run code."""

import csv
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kdbench.errors import UserError

# how the files of CIFAR-N call what noise.annotation names
ANNOTATIONS = {
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
    "noisy_label": "noisy_label",
}
CLEAN = "clean_label"


@contextmanager
def named_errors(key: str, path: str | Path) -> Iterator[None]:
    """Turn errors of disk and format into one line that names the key and the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, RuntimeError, csv.Error, BadZipFile, pickle.UnpicklingError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{key}={path}: cannot be read: {lines[0]}") from error


def _suffix(key: str, path: str | Path, allowed: tuple[str, ...]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in allowed:
        raise UserError(f"{key}={path}: must end in {', '.join(allowed)}")
    return suffix


def matrix(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Read a transition matrix.

    Args:
        path: ``.npy`` (read without pickle) or ``.csv`` without a header.
        num_classes: K, where it is known.

    Returns:
        (K, K) float64: the chance of each label (column) for each true class (row).

    Raises:
        UserError: If it cannot be read, is not K x K, or a row is not a distribution.
    """
    key = "noise.matrix"
    suffix = _suffix(key, path, (".npy", ".csv"))
    with named_errors(key, path):
        read = np.load(path, allow_pickle=False) if suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
        found = np.asarray(read, np.float64)
    wanted = found.shape[:1] * 2 if num_classes is None else (num_classes,) * 2
    if found.ndim != 2 or found.shape != wanted:
        shape = " x ".join(map(str, wanted)) if num_classes else "K x K"
        raise UserError(f"{key}={path}: has shape {' x '.join(map(str, found.shape))}; must be {shape}, rows true")
    for label, row in enumerate(found):
        if not (row >= 0).all() or abs(row.sum() - 1) > 1e-6:  # not: NaN too
            raise UserError(f"{key}={path}: row {label} sums to {row.sum():g}; each must be >= 0 and sum to 1")
    return found


def listed(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Read a label for each image of a training set.

    Args:
        path: ``.npy`` with (N,) integers (read without pickle), or ``.csv`` with the columns ``index,label``, each
            index of 0..N-1 once, in any order.
        num_classes: K, where it is known.

    Returns:
        (N,) int64.

    Raises:
        UserError: If it cannot be read, an index is missing or there twice, or a label is not in [0, K).
    """
    key = "noise.path"
    suffix = _suffix(key, path, (".npy", ".csv"))
    with named_errors(key, path):
        if suffix == ".npy":
            return _labels(np.load(path, allow_pickle=False), key, path, "", num_classes)
        with Path(path).open(newline="") as handle:
            rows = csv.DictReader(handle)
            if not {"index", "label"} <= set(rows.fieldnames or ()):
                raise UserError(f"{key}={path}: the first line must name the columns index,label")
            pairs = np.array([(int(row["index"]), int(row["label"])) for row in rows], np.int64).reshape(-1, 2)
    index, labels = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    if wrong := np.flatnonzero(index != np.arange(len(index))).tolist():
        raise UserError(
            f"{key}={path}: index {wrong[0]} is missing or there twice; must be 0 to {len(index) - 1}, each once"
        )
    return _labels(labels, key, path, "", num_classes)


def human(path: str | Path, annotation: str, num_classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read people's labels as CIFAR-N keeps them: Wei et al., ICLR 2022, arXiv 2110.12088 (data: CC BY-NC 4.0).

    Args:
        path: ``.npz``, or ``.npy`` with named fields (both read without pickle), or ``.pt``: a dict of arrays.
        annotation: A key of ``ANNOTATIONS``.
        num_classes: K, where it is known.

    Returns:
        (N,) int64 true labels and (N,) int64 people's labels.

    Raises:
        UserError: If it cannot be read, lacks one of the two, or a label is not in [0, K).
    """
    key = "noise.path"
    suffix = _suffix(key, path, (".npz", ".npy", ".pt"))
    wanted = ANNOTATIONS[annotation]
    with named_errors(key, path):
        held = _tensors(path) if suffix == ".pt" else np.load(path, allow_pickle=False)
        names = _names(held)
        found = []
        for name in (CLEAN, wanted):
            if name not in names:
                raise UserError(f"{key}={path}: has no {name}; it has {', '.join(names) or 'no named arrays'}")
            found.append(_labels(np.asarray(held[name]), key, path, f"{name}: ", num_classes))
    clean, labels = found
    if len(clean) != len(labels):
        raise UserError(f"{key}={path}: {len(labels)} values of {wanted}; must be {len(clean)}, as many as {CLEAN}")
    return clean, labels


def _names(held: Any) -> list[str]:
    if isinstance(held, np.ndarray):
        return list(held.dtype.names or ())
    return [str(name) for name in held] if isinstance(held, Mapping) else []


def _tensors(path: str | Path) -> Any:
    """A file of torch, of which only tensors, plain containers and NumPy arrays are taken."""
    import torch
    from numpy._core.multiarray import _reconstruct  # the official files hold NumPy arrays, which torch names unsafe

    arrays: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "bBhHiIlLqQ")]
    # NumPy 1 called the module otherwise
    arrays += [(_reconstruct, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")]
    with torch.serialization.safe_globals(arrays):
        return torch.load(path, map_location="cpu", weights_only=True)


def _labels(values: np.ndarray, key: str, path: str | Path, what: str, num_classes: int | None) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise UserError(f"{key}={path}: {what}{values.dtype} of shape {values.shape}; must be integers, one an image")
    high = num_classes or np.inf
    if len(wrong := np.flatnonzero((values < 0) | (values >= high))):
        allowed = f"[0, {num_classes})" if num_classes else ">= 0"
        raise UserError(f"{key}={path}: {what}label {values[wrong[0]]} at index {wrong[0]}; must be in {allowed}")
    return values.astype(np.int64)

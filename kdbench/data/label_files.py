"""Labels and transition matrices from a user's own files. Reading a file here cannot run code from it."""

import csv
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kdbench.errors import UserError

# noise.annotation -> name of the field in the files of CIFAR-N
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
    """Turn errors of disk and file format into a `UserError` of one line that names the key and the file."""
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


def read_matrix(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Read a transition matrix.

    Args:
        path: `.npy` (read without pickle) or `.csv` without a header.
        num_classes: K, if it is known.

    Returns:
        (K, K) float64: the probability of each label (column) for each true class (row).

    Raises:
        UserError: the file cannot be read, the matrix is not K x K, or a row is not a probability distribution.
    """
    key = "noise.matrix"
    suffix = _suffix(key, path, (".npy", ".csv"))
    with named_errors(key, path):
        values = np.load(path, allow_pickle=False) if suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
        matrix = np.asarray(values, np.float64)
    expected = matrix.shape[:1] * 2 if num_classes is None else (num_classes,) * 2
    if matrix.ndim != 2 or matrix.shape != expected:
        allowed = " x ".join(map(str, expected)) if num_classes else "K x K"
        shape = " x ".join(map(str, matrix.shape))
        raise UserError(f"{key}={path}: has shape {shape}; must be {allowed}, one row per true class")
    for label, row in enumerate(matrix):
        if not (row >= 0).all() or abs(row.sum() - 1) > 1e-6:  # `not all` also refuses NaN
            raise UserError(f"{key}={path}: row {label} sums to {row.sum():g}; its entries must be >= 0 and sum to 1")
    return matrix


def read_labels(path: str | Path, num_classes: int | None = None) -> np.ndarray:
    """Read one label per image of a training set.

    Args:
        path: `.npy` with (N,) integers (read without pickle), or `.csv` with the columns `index,label`, in which each
            index of 0..N-1 occurs once, in any order.
        num_classes: K, if it is known.

    Returns:
        (N,) int64.

    Raises:
        UserError: the file cannot be read, an index is missing or duplicated, or a label is not in [0, K).
    """
    key = "noise.path"
    suffix = _suffix(key, path, (".npy", ".csv"))
    with named_errors(key, path):
        if suffix == ".npy":
            return _checked_labels(np.load(path, allow_pickle=False), key, path, "", num_classes)
        with Path(path).open(newline="") as handle:
            rows = csv.DictReader(handle)
            if not {"index", "label"} <= set(rows.fieldnames or ()):
                raise UserError(f"{key}={path}: the first line must name the columns index,label")
            pairs = np.array([(int(row["index"]), int(row["label"])) for row in rows], np.int64).reshape(-1, 2)
    index, labels = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    if wrong := np.flatnonzero(index != np.arange(len(index))).tolist():
        raise UserError(
            f"{key}={path}: index {wrong[0]} is missing or duplicated; must be 0 to {len(index) - 1}, each once"
        )
    return _checked_labels(labels, key, path, "", num_classes)


def read_human_labels(
    path: str | Path, annotation: str, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read human labels in the format of CIFAR-N: Wei et al., ICLR 2022, arXiv 2110.12088 (data: CC BY-NC 4.0).

    Args:
        path: `.npz`, `.npy` with named fields (both read without pickle), or `.pt`: a dict of arrays.
        annotation: a key of `ANNOTATIONS`.
        num_classes: K, if it is known.

    Returns:
        (N,) int64 true labels and (N,) int64 human labels.

    Raises:
        UserError: the file cannot be read or lacks one of the two, or a label is not in [0, K).
    """
    key = "noise.path"
    suffix = _suffix(key, path, (".npz", ".npy", ".pt"))
    field = ANNOTATIONS[annotation]
    with named_errors(key, path):
        content = _load_tensors(path) if suffix == ".pt" else np.load(path, allow_pickle=False)
        names = _names(content)
        columns = []
        for name in (CLEAN, field):
            if name not in names:
                raise UserError(f"{key}={path}: has no {name}; it has {', '.join(names) or 'no named arrays'}")
            columns.append(_checked_labels(np.asarray(content[name]), key, path, f"{name}: ", num_classes))
    clean, labels = columns
    if len(clean) != len(labels):
        raise UserError(f"{key}={path}: {len(labels)} values of {field}; must be {len(clean)}, as many as {CLEAN}")
    return clean, labels


def _names(content: Any) -> list[str]:
    if isinstance(content, np.ndarray):
        return list(content.dtype.names or ())
    return [str(name) for name in content] if isinstance(content, Mapping) else []


def _load_tensors(path: str | Path) -> Any:
    """Load a file of torch, allowing only tensors, plain containers and NumPy arrays."""
    import torch
    from numpy._core.multiarray import _reconstruct  # the official files hold NumPy arrays, which need it

    arrays: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "bBhHiIlLqQ")]
    # the module had another name in NumPy 1
    arrays += [(_reconstruct, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")]
    with torch.serialization.safe_globals(arrays):
        return torch.load(path, map_location="cpu", weights_only=True)


def _checked_labels(values: np.ndarray, key: str, path: str | Path, prefix: str, num_classes: int | None) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise UserError(
            f"{key}={path}: {prefix}{values.dtype} of shape {values.shape}; must be integers, one per image"
        )
    high = num_classes or np.inf
    if len(wrong := np.flatnonzero((values < 0) | (values >= high))):
        allowed = f"[0, {num_classes})" if num_classes else ">= 0"
        raise UserError(f"{key}={path}: {prefix}label {values[wrong[0]]} at index {wrong[0]}; must be in {allowed}")
    return values.astype(np.int64)

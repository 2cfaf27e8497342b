"""Class imbalance: which training images are kept. Applied before the label noise, by true class."""

import numpy as np

from kdbench.errors import UserError


def check(imbalance: dict) -> None:
    """Raise ``UserError`` if the imbalance asked for does not exist."""
    if imbalance["name"] != "none":
        raise UserError(f"imbalance.name={imbalance['name']}: the only kind is none")


def subset(labels: np.ndarray, imbalance: dict) -> np.ndarray:
    """Positions of the training images that are kept.

    Args:
        labels: (N,) int64, true classes.
        imbalance: The ``imbalance`` group: ``name``.

    Returns:
        Ascending int64 positions in ``labels``; all of them for ``none``.
    """
    check(imbalance)
    return np.arange(len(labels))

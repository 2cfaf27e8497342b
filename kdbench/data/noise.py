"""Label noise of the training set. The test set is never touched."""

import numpy as np

from kdbench.data.streams import derive
from kdbench.errors import UserError

KINDS = ("none", "symmetric")


def check(noise: dict) -> None:
    """Raise ``UserError`` for a kind that does not exist, a rate out of range, or a rate without a kind."""
    name, rate = noise["name"], noise["rate"]
    if name not in KINDS:
        raise UserError(f"noise.name={name}: must be one of {', '.join(KINDS)}")
    if not 0 <= rate <= 1:
        raise UserError(f"noise.rate={rate}: must be in [0, 1]")
    if name == "none" and rate > 0:
        raise UserError(f"noise.rate={rate} with noise=none: choose the kind of noise, e.g. noise=symmetric")


def corrupt(labels: np.ndarray, num_classes: int, noise: dict) -> np.ndarray:
    """Labels with noise: each sample independently, with probability ``rate``, gets another label.

    Symmetric noise is uniform, over the other K-1 classes (Han et al., Co-teaching, NeurIPS 2018, arXiv
    1804.06872: the effective rate is ``rate``) or, with ``include_true``, over all K (Li et al., DivideMix,
    ICLR 2020, arXiv 2002.07394, though there exactly ``rate * N`` samples are drawn: the effective rate is
    ``rate * (K-1)/K``). It depends on ``noise.seed`` alone, never on the run's seed, and with one seed the
    samples hit at a low rate are hit at a higher one too.

    Args:
        labels: (N,) int64, true classes in [0, K).
        num_classes: K.
        noise: The ``noise`` group: ``name``, ``rate``, ``seed``, ``include_true``.

    Returns:
        (N,) int64, a new array.

    Raises:
        UserError: As ``check``.
    """
    check(noise)
    if noise["name"] == "none":
        return labels.copy()
    rng = np.random.default_rng(derive(noise["seed"], "noise"))
    hit = rng.random(len(labels)) < noise["rate"]
    choices = num_classes if noise["include_true"] else num_classes - 1
    drawn = (rng.random(len(labels)) * choices).astype(np.int64)
    if not noise["include_true"]:
        drawn += drawn >= labels  # skip the true class
    return np.where(hit, drawn, labels)

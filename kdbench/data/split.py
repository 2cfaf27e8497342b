"""Stratified split of a labelled set."""

import numpy as np

from kdbench.data.streams import derive


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out `fraction` of every class, rounded, but never the last sample of a class.

    scikit-learn's splitters refuse classes with a single member, which a long-tailed set has; and the split must not
    change with the version of a library.

    Args:
        labels: (N,) int64.
        fraction: in [0, 1).
        seed: seed of the split alone.

    Returns:
        Kept and held-out positions: int64, ascending, disjoint, together 0..N-1.
    """
    # ranks of raw uniform numbers, which NumPy is less likely to change than its permutations
    rank = np.random.default_rng(derive(seed, "split")).random(len(labels))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(round(len(members) * fraction), len(members) - 1)
        held_out[members[np.argsort(rank[members])[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)

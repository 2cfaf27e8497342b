"""Accuracy by class, and by how many training images the classes have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.imbalance import shot_groups


def groups(predictions: Tensor, labels: Tensor, class_counts: np.ndarray) -> dict[str, Any]:
    """What is recorded of a test set.

    Args:
        predictions: (N,) int64.
        labels: (N,) int64.
        class_counts: (K,) training images of each class.

    Returns:
        `balanced_accuracy`, `per_class` (K values), `many`, `medium` and `few`, as the functions below give them.
    """
    accuracies = per_class(predictions, labels, len(class_counts))
    return {
        "balanced_accuracy": balanced_accuracy(accuracies),
        "per_class": accuracies,
        **by_shots(accuracies, class_counts),
    }


def per_class(predictions: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Share of each class's samples that are predicted as it.

    Args:
        predictions: (N,) int64.
        labels: (N,) int64, in [0, K).
        num_classes: K.

    Returns:
        K fractions, None for a class without samples.
    """
    there = torch.bincount(labels, minlength=num_classes).tolist()
    right = torch.bincount(labels[predictions == labels], minlength=num_classes).tolist()
    return [hits / count if count else None for hits, count in zip(right, there, strict=True)]


def balanced_accuracy(accuracies: Sequence[float | None]) -> float | None:
    """Mean of `per_class` over the classes that have samples; None if none has."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def by_shots(accuracies: Sequence[float | None], class_counts: np.ndarray) -> dict[str, float | None]:
    """Mean of `per_class` over the classes with many, medium and few training images.

    Args:
        accuracies: K, as `per_class` gives them.
        class_counts: (K,) training images of each class.

    Returns:
        `many`, `medium`, `few`; None for a group without a class that has samples.
    """
    return {
        name: balanced_accuracy([accuracy for accuracy, member in zip(accuracies, members, strict=True) if member])
        for name, members in shot_groups(class_counts).items()
    }

"""Accuracy per class and per group of classes with many, medium and few training images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.imbalance import shot_groups


def groups(predictions: Tensor, labels: Tensor, class_counts: np.ndarray) -> dict[str, Any]:
    """The accuracies by class that are recorded for a data set.

    Args:
        predictions: (N,) int64.
        labels: (N,) int64.
        class_counts: (K,) number of training images of each class.

    Returns:
        `balanced_accuracy`, `per_class` (K values), and `many`, `medium` and `few` of `by_shots`.
    """
    accuracies = per_class(predictions, labels, len(class_counts))
    return {
        "balanced_accuracy": balanced_accuracy(accuracies),
        "per_class": accuracies,
        **by_shots(accuracies, class_counts),
    }


def per_class(predictions: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Accuracy on the samples of each class.

    Args:
        predictions: (N,) int64.
        labels: (N,) int64, in [0, K).
        num_classes: K.

    Returns:
        K fractions; None for a class without samples.
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    correct = torch.bincount(labels[predictions == labels], minlength=num_classes).tolist()
    return [hits / count if count else None for hits, count in zip(correct, counts, strict=True)]


def balanced_accuracy(accuracies: Sequence[float | None]) -> float | None:
    """Mean of `per_class` over the classes that have samples; None if there are none."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def by_shots(accuracies: Sequence[float | None], class_counts: np.ndarray) -> dict[str, float | None]:
    """Mean of `per_class` over the classes with many, medium and few training images.

    Args:
        accuracies: K values of `per_class`.
        class_counts: (K,) number of training images of each class.

    Returns:
        `many`, `medium` and `few`; None for a group in which no class has samples.
    """
    return {
        name: balanced_accuracy([accuracy for accuracy, member in zip(accuracies, members, strict=True) if member])
        for name, members in shot_groups(class_counts).items()
    }

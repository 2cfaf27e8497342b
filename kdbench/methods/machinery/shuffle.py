"""A control experiment: the student sees the teacher's features of other images."""

import torch
from torch import Tensor

from kdbench.models.features import Features


def shuffled(features: Features, labels: Tensor, order: str) -> Features:
    """The features of a batch, permuted among its images.

    Args:
        features: of a batch.
        labels: (B,).
        order: `none`, `batch` (a random permutation) or `class` (a random permutation within each label).
    """
    if order == "none":
        return features
    noise = torch.rand(labels.shape, dtype=torch.float64, device=labels.device)
    if order == "batch":
        index = noise.argsort()
    else:
        # Two sorts by label, one keeping the order within a label and one random: pair the samples by position.
        index = torch.empty_like(labels).scatter(0, labels.argsort(stable=True), (labels + noise).argsort())
    return Features([maps[index] for maps in features.stages], features.embedding[index], features.logits[index])

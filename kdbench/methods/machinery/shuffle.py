"""A control: the teacher's answers to other images."""

import torch
from torch import Tensor

from kdbench.models.features import Features


def shuffled(features: Features, labels: Tensor, order: str) -> Features:
    """Features of other images of the batch.

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
        # Sorted by label, once at random within a label and once not: samples at the same place are exchanged.
        index = torch.empty_like(labels).scatter(0, labels.argsort(stable=True), (labels + noise).argsort())
    return Features([maps[index] for maps in features.stages], features.embedding[index], features.logits[index])

"""Similarity-preserving KD: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682).

    L = CE(z_s, y) + gamma / B^2 * sum_j ||G_s^j - G_t^j||_F^2,   G = rows of (Q Q^T), each divided by its L2 norm,

with Q (B, C H W) the flattened maps of a batch, so widths and sizes of the two networks may differ. Only rows are
normalised, never the whole matrix (the other form seen in public code). Defaults of RepDistiller, confirmed there by
an author of the paper: gamma = 3000, the last stage map alone. Rows have norm 1, so the loss is at most 4 / B: the
weight in effect falls with the batch size, and it was set for 64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import Stages, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def similarity(maps: Tensor) -> Tensor:
    """Similarities of the samples of a batch: maps (B,C,H,W) -> (B,B), rows of norm 1."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / B^2 of maps (B,C,H,W) and (B,C',H',W'), the teacher's constants; a scalar."""
    return (similarity(student) - similarity(teacher)).square().mean()


class SP(Method):
    """Pairwise similarities of the samples in a batch."""

    per_sample = False

    def __init__(self, weight: float, stages: Stages) -> None:
        super().__init__()
        self.weight, self.chosen = weight, stages

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the maps."""
        self.pairs = pairs(self.chosen, student, teacher, "sp")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`sp`: the sum over the pairs of maps."""
        each = [sp_loss(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        return {"sp": self.weight * torch.stack(each).sum()}

"""Similarity-preserving KD: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682).

    L = CE(z_s, y) + gamma / B^2 * sum_j ||G_s^j - G_t^j||_F^2,   G = rows of (Q Q^T), each divided by its L2 norm,

where Q (B, C H W) holds the flattened maps of a batch, so the two networks may differ in width and in the size of their
maps. Only the rows are normalised, never the whole matrix, as some public code does. The defaults are RepDistiller's,
confirmed there by an author of the paper: gamma = 3000 and the last stage map alone. As the rows have norm 1, the loss
is at most 4 / B: the effective weight falls with the batch size, and gamma was chosen for batches of 64.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def similarity(maps: Tensor) -> Tensor:
    """Similarities G between the samples of a batch: maps (B,C,H,W) -> (B,B), rows of norm 1."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / B^2, a scalar, of maps (B,C,H,W) and (B,C',H',W'), the latter constants."""
    return (similarity(student) - similarity(teacher)).square().mean()


class SP(Method):
    """The student keeps the teacher's pairwise similarities between the samples of a batch."""

    per_sample = False
    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, stages: StageChoice) -> None:
        super().__init__()
        self.weight, self.stage_choice = weight, stages

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps."""
        self.pairs = pairs(self.stage_choice, student, teacher, "sp")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`sp`, the sum over the pairs of maps."""
        losses = [sp_loss(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        return {"sp": self.weight * torch.stack(losses).sum()}

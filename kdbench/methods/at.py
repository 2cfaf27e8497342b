"""Attention transfer: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928).

    L = CE(z_s, y) + beta * sum_j d(Q_s^j, Q_t^j),   Q = vec(mean_c |F_c|^p) / ||vec(mean_c |F_c|^p)||_2,   p = 2

over stage maps j; of a pair the larger map is average-pooled to the smaller's size.

Two distances d go by this name. `reference`: the mean over batch and pixels of squared differences, as in the
authors' code, RepDistiller and mdistiller, with beta = 1000; behind all published tables, and the default. A mean over
pixels weighs small maps more: beta / (H W) is 1, 4 and 16 at 32, 16 and 8 pixels. `paper`: half the norm, not squared,
of the difference per sample (eq. 2; the formula as quoted by others, the paper's text was not at hand).
The authors' code can add KD with a weight of its own; here that is `plus=[kd]`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import Stages, matched, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def attention(maps: Tensor, power: float) -> Tensor:
    """Where a network looks: maps (B,C,H,W) -> (B, H*W), rows of norm 1."""
    return F.normalize(maps.abs().pow(power).mean(1).flatten(1), dim=1)


def at_loss(student: Tensor, teacher: Tensor, power: float, variant: str) -> Tensor:
    """Distance of two attention maps.

    Args:
        student: (B,C,H,W).
        teacher: (B,C',H',W'), constants.
        power: p > 0.
        variant: `reference` or `paper`.

    Returns:
        Scalar, mean over the batch.
    """
    student, teacher = matched(student, teacher)
    difference = attention(student, power) - attention(teacher, power)
    if variant == "paper":
        return torch.linalg.vector_norm(difference, dim=1).mean() / 2
    return difference.square().mean()


class AT(Method):
    """Attention maps of the stages."""

    def __init__(self, weight: float, power: float, stages: Stages, variant: str) -> None:
        super().__init__()
        self.weight, self.power, self.chosen, self.variant = weight, power, stages, variant

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the maps."""
        self.pairs = pairs(self.chosen, student, teacher, "at")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`at`: the sum over the pairs of maps."""
        each = [at_loss(student.stages[i], teacher.stages[j], self.power, self.variant) for i, j in self.pairs]
        return {"at": self.weight * torch.stack(each).sum()}

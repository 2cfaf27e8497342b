"""Attention transfer: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928).

    L = CE(z_s, y) + beta * sum_j d(Q_s^j, Q_t^j),   Q = vec(mean_c |F_c|^p) / ||vec(mean_c |F_c|^p)||_2,   p = 2

summed over stage maps j; of each pair, the larger map is average-pooled to the size of the smaller one.

Two distances d go by this name. The default, `variant: reference`, is the mean over batch and pixels of the squared
differences, with beta = 1000, as in the authors' code, RepDistiller and mdistiller; all published tables use it. A mean
over pixels gives small maps more weight: beta / (H W) is 1, 4 and 16 at 32, 16 and 8 pixels. `variant: paper` is half
the norm, not squared, of the difference per sample (eq. 2, as quoted by others: the text of the paper was not
available). The authors' code can add KD with a weight of its own; here that is `plus=[kd]`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, matched, pairs, require_pixels
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def attention(maps: Tensor, power: float) -> Tensor:
    """Attention maps, which show where a network looks: (B,C,H,W) -> (B, H*W), rows of norm 1."""
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
    """The student imitates the teacher's attention maps."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, power: float, stages: StageChoice, variant: str) -> None:
        super().__init__()
        self.weight, self.power, self.stage_choice, self.variant = weight, power, stages, variant

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps.

        Raises:
            UserError: a pair has only one pixel in common, whose normalised attention is always 1.
        """
        self.pairs = pairs(self.stage_choice, student, teacher, "at")
        require_pixels(self.pairs, student, teacher, "at")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`at`, the sum over the pairs of maps."""
        losses = [at_loss(student.stages[i], teacher.stages[j], self.power, self.variant) for i, j in self.pairs]
        return {"at": self.weight * torch.stack(losses).sum()}

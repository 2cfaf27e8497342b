"""VID: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019 (arXiv 1904.05835).

    L = CE(z_s, y) + weight * sum_j mean 1/2 [ (F_t^j - mu_j(F_s^j))^2 / sigma_c^2 + log sigma_c^2 ]
    sigma_c^2 = log(1 + exp(alpha_c)) + 1e-5

which, but for a constant, is the negative log-likelihood of the teacher's maps under a Gaussian, whose mean mu is
regressed from the student's map and whose variance is learned for each channel c: a bound on the information that the
two have in common. Both are trained with the student and then discarded. The loss is negative where the variances are
small.

The bound is used for the stage maps alone; the paper also has one for the logits. As in RepDistiller, the mean is over
all elements, mu is three 1x1 convolutions without bias and with ReLU between them, all of the teacher's width, the
variances begin at 5, the maps are all after the stem, and the weight is 1. Of each pair, the larger map is
average-pooled to the size of the smaller one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, matched, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

EPS = 1e-5  # the least variance


def vid_loss(mean: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of maps under a Gaussian, without the constant log(2 pi) / 2.

    Args:
        mean: (B,C,H,W).
        scale: alpha (C,); the variance of a channel is softplus(alpha) + 1e-5.
        target: the teacher's maps (B,C,H,W), constants.

    Returns:
        Scalar, mean over all elements, in nats.
    """
    variance = (F.softplus(scale) + EPS)[:, None, None]
    return ((target - mean).square() / variance + variance.log()).mean() / 2


class Gaussian(nn.Module):
    """The distribution of the teacher's maps given the student's.

    Args:
        student_width: number of channels of the student's map.
        teacher_width: number of channels of the teacher's map.
        variance: at first, of all channels; > 1e-5.
    """

    def __init__(self, student_width: int, teacher_width: int, variance: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (student_width, teacher_width, teacher_width):
            layers += [nn.Conv2d(width, teacher_width, 1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        above = variance - EPS  # of which alpha is the inverse softplus, written so that it does not overflow
        self.scale = nn.Parameter(torch.full((teacher_width,), above + math.log(-math.expm1(-above))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a scalar, of maps (B,C,H,W) and (B,C',H',W')."""
        student, teacher = matched(student, teacher)
        return vid_loss(self.mean(student), self.scale, teacher)


class VID(Method):
    """The student's maps are made to predict the teacher's."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, stages: StageChoice, variance: float) -> None:
        super().__init__()
        self.weight, self.stage_choice, self.variance = weight, stages, variance

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a distribution for each."""
        self.pairs = pairs(self.stage_choice, student, teacher, "vid")
        widths = [(student.stages[i][0], teacher.stages[j][0]) for i, j in self.pairs]
        self.gaussians = nn.ModuleList(Gaussian(*pair, self.variance) for pair in widths)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`vid`, the sum over the pairs of maps."""
        indices = zip(self.pairs, self.gaussians, strict=True)
        losses = [gaussian(student.stages[i], teacher.stages[j]) for (i, j), gaussian in indices]
        return {"vid": self.weight * torch.stack(losses).sum()}

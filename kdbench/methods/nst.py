"""NST: Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017 (arXiv 1707.01219).

    L = CE(z_s, y) + weight * sum_j MMD^2(F_s^j, F_t^j)
    MMD^2 = mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c'),   k(a, b) = (a . b)^2

where s_c and t_c, the maps of the single channels as vectors of pixels of norm 1, are taken as samples of two
distributions. Mean over the batch, summed over stage maps j; of each pair, the larger map is average-pooled to the size
of the smaller one. The number of channels may differ, and their signs do not matter.

Kernel, maps and the weight of 50 are RepDistiller's; the paper also has a linear and a Gaussian kernel. The terms are
sums of squares of C x C' matrices of products, so no tensor has as many elements as channels by channels by pixels, and
the gradient of a channel that is zero everywhere is zero.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, matched, pairs, require_pixels
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().mean()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD^2 between the channels of two maps.

    Args:
        student: (B,C,H,W).
        teacher: (B,C',H',W'), constants.

    Returns:
        Scalar, mean over the batch.
    """
    student, teacher = (F.normalize(maps.flatten(2), dim=2) for maps in matched(student, teacher))
    within = _mean_kernel(teacher, teacher) + _mean_kernel(student, student)
    return within - 2 * _mean_kernel(student, teacher)


class NST(Method):
    """The channels of the student are active at the same pixels as those of the teacher."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, stages: StageChoice) -> None:
        super().__init__()
        self.weight, self.stage_choice = weight, stages

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps.

        Raises:
            UserError: a pair has only one pixel in common, where all normalised channels are alike.
        """
        self.pairs = pairs(self.stage_choice, student, teacher, "nst")
        require_pixels(self.pairs, student, teacher, "nst")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`nst`, the sum over the pairs of maps."""
        losses = [nst_loss(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        return {"nst": self.weight * torch.stack(losses).sum()}

"""AB: Heo, Lee, Yun & Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
AAAI 2019 (arXiv 1811.03233).

    L_AB = sum_j 2^(j-J) * 3/1000 * 1/B sum [ t > 0 ] max(m - r_j(s), 0)^2 + [ t <= 0 ] max(m + r_j(s), 0)^2

over the elements s and t of the stage maps j = 1..J: the teacher's neuron is active or it is not, and the student's,
after a connector r_j, is to be on the same side of zero with a margin m. How active it is does not matter. The
connectors, a convolution with batch norm, are trained with the student and then discarded.

`training: staged` (default; the paper, RepDistiller): first L_AB alone, then the cross-entropy alone; the paper adds KD
to the latter, which is `plus=[kd]`. `joint` adds L_AB to the cross-entropy instead, as in `plus=[ab]`. The scale of
3/1000, the halved weights of shallower maps, the margin of 1, and the first stage of 30 epochs before 240 with the
recipe's learning rate are RepDistiller's, whose documented weight of 1 has no effect.

The paper and RepDistiller take the maps before the ReLU. Here they are the networks' stage maps, for ResNets those
after it. For the teacher that makes no difference, as the sign is all that is read; the student's map passes through
the connector, which restores the negative side, so there always is one (RepDistiller: none where the shapes are equal).
The maps of wide ResNets are sums before batch norm and ReLU, and their sign is taken as it is (RepDistiller: after the
next batch norm). Sizes are brought together as in `fitnet`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, matched, pairs
from kdbench.methods.fitnet import regressor
from kdbench.methods.machinery.stages import Stage, first_stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distances from the teacher's side of zero, times 3/1000.

    Args:
        student: (B,C,H,W), after the connector.
        teacher: (B,C,H,W), constants.
        margin: m > 0.

    Returns:
        Scalar, sum over the map, mean over the batch.
    """
    towards = torch.where(teacher > 0, student, -student)
    return 3 / 1000 * (margin - towards).clamp(min=0).square().sum() / len(student)


class AB(Method):
    """The neurons of the student are active where those of the teacher are."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(
        self, weight: float, stages: StageChoice, margin: float, training: str, first_stage: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.weight, self.stage_choice, self.margin = weight, stages, margin
        self.staged, self.first = training == "staged", first_stage

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a connector for each."""
        self.pairs = pairs(self.stage_choice, student, teacher, "ab")
        shapes = [(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        self.connectors = nn.ModuleList(regressor(*pair, relu=False) for pair in shapes)

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """A stage with the boundaries alone, if training is staged."""
        return [first_stage("boundaries", self.first, recipe, self.boundaries)] if self.staged else []

    def boundaries(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`ab`, the sum over the pairs of maps, of which each has twice the weight of the one before it."""
        total = student.stages[0].new_zeros(())
        for (i, j), connector in zip(self.pairs, self.connectors, strict=True):
            student_map, teacher_map = student.stages[i], teacher.stages[j]
            if connector[0].kernel_size == (1, 1):  # type: ignore[index]  # else it changes the size
                student_map, teacher_map = matched(student_map, teacher_map)
            total = total / 2 + boundary_loss(connector(student_map), teacher_map, self.margin)
        return {"ab": self.weight * total}

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`ab`, or nothing in the second of two stages."""
        return {} if self.staged else self.boundaries(student, teacher, batch)

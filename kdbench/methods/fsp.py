"""FSP: Yim, Joo, Bae & Kim, "A Gift from Knowledge Distillation", CVPR 2017.

    G_ij(F1, F2) = 1 / (h w) * sum_pixels F1_i F2_j,   L_FSP = sum_n || G_s^n - G_t^n ||^2

where G^n is the matrix of the consecutive stage maps n and n + 1, the larger of which is pooled to the size of the
smaller. It has a row for each channel of the first map and a column for each channel of the second, so the two networks
must have the same widths.

`training: staged` (default; the paper, RepDistiller): first L_FSP alone, then the cross-entropy alone. `joint` adds
L_FSP to the cross-entropy instead, as in `plus=[fsp]`. `distance: mean`, over the elements of G, is the form of
RepDistiller and of the authors of "Knowledge Distillation Beyond Model Compression"; `sum` is that of the paper.
`pooling: avg` is RepDistiller's, `max` the paper's. The weight of 50 in RepDistiller's documentation has no effect: its
first stage has weight 1, its second none. G is quadratic in the activations, and those of wide ResNets are not
normalised: with the learning rate of the recipe, as in RepDistiller, the first stage diverged on wrn_40_2 -> wrn_16_2
within an epoch. Here it uses a fiftieth of that rate, with which the loss also fell faster.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.feature_maps import StageChoice, pairs, pooled
from kdbench.methods.machinery.stages import Stage, first_stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def fsp_matrix(first: Tensor, second: Tensor, pooling: str) -> Tensor:
    """G (B,C,C') of maps (B,C,H,W) and (B,C',H',W'), the larger pooled by `max` or `avg` to the size of the smaller."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    first, second = (pooled(maps, size, pooling).flatten(2) for maps in (first, second))
    return first @ second.mT / first.shape[2]


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], pooling: str, distance: str) -> Tensor:
    """Squared differences of the G of consecutive maps, summed over the pairs.

    Args:
        student: maps (B,C_n,H,W).
        teacher: as many maps of the same widths; constants.
        pooling: `max` or `avg`.
        distance: `mean` over all elements, or `sum` over the elements of G and mean over the batch.

    Returns:
        Scalar.
    """
    losses = []
    for student_pair, teacher_pair in zip(pairwise(student), pairwise(teacher), strict=True):
        squares = (fsp_matrix(*student_pair, pooling) - fsp_matrix(*teacher_pair, pooling)).square()
        losses.append(squares.mean() if distance == "mean" else squares.sum() / len(squares))
    return torch.stack(losses).sum()


class FSP(Method):
    """The student imitates the flow from one stage of the teacher to the next."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(
        self,
        weight: float,
        stages: StageChoice,
        pooling: str,
        distance: str,
        training: str,
        first_stage: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.weight, self.stage_choice, self.pooling, self.distance = weight, stages, pooling, distance
        self.staged, self.first = training == "staged", first_stage

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps.

        Raises:
            UserError: the widths differ, or there is only one map.
        """
        self.pairs = pairs(self.stage_choice, student, teacher, "fsp", stem=True)
        if len(self.pairs) < 2:
            raise UserError("fsp compares the flow between two stage maps, and there is only one")
        for i, j in self.pairs:
            student_width, teacher_width = student.stages[i][0], teacher.stages[j][0]
            if student_width != teacher_width:
                raise UserError(
                    f"fsp needs networks of the same widths, because it compares matrices of channels by channels: "
                    f"stage map {i} of the student has {student_width} channels, {j} of the teacher {teacher_width}"
                )

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """A stage with the flow alone, if training is staged."""
        return [first_stage("flow", self.first, recipe, self.flow)] if self.staged else []

    def flow(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`fsp`, the sum over consecutive maps."""
        student_maps = [student.stages[i] for i, _ in self.pairs]
        teacher_maps = [teacher.stages[j] for _, j in self.pairs]
        return {"fsp": self.weight * fsp_loss(student_maps, teacher_maps, self.pooling, self.distance)}

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`fsp`, or nothing in the second of two stages."""
        return {} if self.staged else self.flow(student, teacher, batch)

"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550).

    hint(F_s, F_t) = || r(F_s) - F_t ||^2

compares one stage map of the student, after a regressor r that is trained with it and then discarded, with one of the
teacher.

`training: joint` (default): L = CE(z_s, y) + weight * hint, as in RepDistiller and mdistiller, which the published
tables of the field use: a mean over all elements, weight 100, the map after the second stage; r is a convolution with
bias, batch norm and ReLU. `training: staged` is that of the paper: first the hint alone, without labels, then

    L = CE(z_s, y) + lambda(e) * SCE_T(z_s, z_t),   SCE_T = - sum_k softmax(z_t / T)_k log softmax(z_s / T)_k

with T = 3, lambda falling linearly from 4 in the first epoch to 1 in the last, and no factor T^2 (the authors' code).
Length and learning rate of the first stage are our choice: the paper trains with RMSProp. `distance: sum` is eq. 3 of
the paper, half the sum over the map.

After its ReLU, the regressor cannot match negative values; wide ResNets have such maps, so use `relu: false` there.
Its convolution is 3x3 with stride 2 if the student's map is twice the size of the teacher's, a transposed 4x4 one if it
is half the size, and 1x1 otherwise, after the larger map has been average-pooled (mdistiller uses convolutions without
padding; here their kernels would be up to 25 pixels wide). The authors of "Knowledge Distillation Beyond Model
Compression" compare maps of equal shape without a regressor.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, matched, pairs
from kdbench.methods.kd import soft_cross_entropy
from kdbench.methods.machinery.stages import Stage, first_stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def hint_loss(student: Tensor, teacher: Tensor, distance: str) -> Tensor:
    """Squared difference of two maps of the same shape.

    Args:
        student: (B,C,H,W), after the regressor.
        teacher: (B,C,H,W), constants.
        distance: `mean` over all elements, or `sum`: half the sum over C, H, W, mean over the batch (eq. 3).

    Returns:
        Scalar.
    """
    squares = (student - teacher).square()
    return squares.mean() if distance == "mean" else squares.sum() / (2 * len(squares))


def regressor(student: tuple[int, int, int], teacher: tuple[int, int, int], relu: bool) -> nn.Sequential:
    """A regressor from maps of the student's shape (C,H,W) to the teacher's.

    It changes the size of the map only where the two sizes are as 2:1 or 1:2; else its convolution is 1x1.

    Args:
        student: shape of the student's map.
        teacher: shape of the teacher's map.
        relu: whether it ends in a ReLU.
    """
    (student_width, *student_size), (teacher_width, *teacher_size) = student, teacher
    convolution: nn.Module
    if student_size == [2 * side for side in teacher_size]:
        convolution = nn.Conv2d(student_width, teacher_width, 3, stride=2, padding=1)
    elif [2 * side for side in student_size] == teacher_size:
        convolution = nn.ConvTranspose2d(student_width, teacher_width, 4, stride=2, padding=1)
    else:
        convolution = nn.Conv2d(student_width, teacher_width, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_width), *([nn.ReLU()] if relu else []))


class FitNet(Method):
    """The student's stage map, after a regressor, imitates the teacher's."""

    mixed_labels = True
    reads = ("stages", "logits")

    def __init__(
        self,
        weight: float,
        stages: StageChoice,
        distance: str,
        relu: bool,
        training: str,
        first_stage: Mapping[str, float],
        second_stage: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.weight, self.stage_choice, self.distance, self.relu = weight, stages, distance, relu
        self.staged, self.first, self.second = training == "staged", first_stage, second_stage

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a regressor for each."""
        self.pairs = pairs(self.stage_choice, student, teacher, "fitnet")
        shapes = [(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        self.regressors = nn.ModuleList(regressor(*pair, self.relu) for pair in shapes)

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """A stage with the hint alone, if training is staged."""
        return [first_stage("hint", self.first, recipe, self.hint)] if self.staged else []

    def hint(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`hint`, the sum over the pairs of maps."""
        total = student.logits.new_zeros(())
        for (i, j), regress in zip(self.pairs, self.regressors, strict=True):
            student_map, teacher_map = student.stages[i], teacher.stages[j]
            if regress[0].kernel_size == (1, 1):  # type: ignore[index]  # else it changes the size
                student_map, teacher_map = matched(student_map, teacher_map)
            total = total + hint_loss(regress(student_map), teacher_map, self.distance)
        return {"hint": self.weight * total}

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`hint`, or `soft` in the second of two stages."""
        if not self.staged:
            return self.hint(student, teacher, batch)
        start, end = self.second["start"], self.second["end"]
        weight = start + (end - start) * self.progress.epoch / max(self.progress.epochs - 1, 1)
        return {"soft": weight * soft_cross_entropy(student.logits, teacher.logits, self.second["temperature"]).mean()}

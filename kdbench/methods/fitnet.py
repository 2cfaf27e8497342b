"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550).

    hint(F_s, F_t) = || r(F_s) - F_t ||^2

of one stage map of the student, through a regressor r that is trained with it and thrown away, and one of the teacher.

`training: joint` (default): L = CE(z_s, y) + weight * hint, the form of RepDistiller and mdistiller that stands behind
the field's tables: mean over all elements, weight 100, the map after the second stage, r a convolution with bias,
batch norm and ReLU. `training: staged` is the paper's: first the hint alone, no labels, then

    L = CE(z_s, y) + lambda(e) * SCE_T(z_s, z_t),   SCE_T = - sum_k softmax(z_t / T)_k log softmax(z_s / T)_k

with T = 3 and lambda falling linearly from 4 in the first epoch to 1 in the last, and no T^2 (the authors' code).
The lengths and the learning rate of the first stage are ours: the paper trains with RMSProp. `distance: sum` is the
paper's eq. 3, half the sum over the map.

The regressor's ReLU cannot follow maps with negative values, which those of wide ResNets are: `relu: false` there.
Its convolution is 3x3 of stride 2 where the student's map has twice the teacher's size, 4x4 transposed where it has
half of it, and 1x1 else, the larger map being average-pooled (mdistiller's valid convolutions would be 25 pixels wide).
The authors of "Knowledge Distillation Beyond Model Compression" compare equal shapes without a regressor.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import Stages, matched, pairs
from kdbench.methods.kd import soft_cross_entropy
from kdbench.methods.machinery.stages import Stage, first_stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def hint_loss(student: Tensor, teacher: Tensor, distance: str) -> Tensor:
    """Squared differences of maps (B,C,H,W) of equal shape, the teacher's constants; a scalar.

    Args:
        student: after the regressor.
        teacher: of the same shape.
        distance: `mean` over all elements, or `sum`: half the sum over C, H, W, mean over the batch (eq. 3).
    """
    squares = (student - teacher).square()
    return squares.mean() if distance == "mean" else squares.sum() / (2 * len(squares))


def regressor(student: tuple[int, int, int], teacher: tuple[int, int, int], relu: bool) -> nn.Sequential:
    """From maps of the student's shape (C,H,W) to the teacher's; 1x1 where the sizes are not as 2:1 or 1:2."""
    (width, *size), (wanted, *aim) = student, teacher
    convolution: nn.Module
    if size == [2 * side for side in aim]:
        convolution = nn.Conv2d(width, wanted, 3, stride=2, padding=1)
    elif [2 * side for side in size] == aim:
        convolution = nn.ConvTranspose2d(width, wanted, 4, stride=2, padding=1)
    else:
        convolution = nn.Conv2d(width, wanted, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(wanted), *([nn.ReLU()] if relu else []))


class FitNet(Method):
    """A stage map, through a regressor."""

    def __init__(
        self,
        weight: float,
        stages: Stages,
        distance: str,
        relu: bool,
        training: str,
        first_stage: Mapping[str, float],
        second_stage: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.weight, self.chosen, self.distance, self.relu = weight, stages, distance, relu
        self.staged, self.first, self.second = training == "staged", first_stage, second_stage

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the maps and make a regressor for each."""
        self.pairs = pairs(self.chosen, student, teacher, "fitnet")
        shapes = [(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        self.regressors = nn.ModuleList(regressor(*pair, self.relu) for pair in shapes)

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """The hint alone, where training is staged."""
        return [first_stage("hint", self.first, recipe, self.hint)] if self.staged else []

    def hint(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`hint`: the sum over the pairs of maps."""
        total = student.logits.new_zeros(())
        for (i, j), regress in zip(self.pairs, self.regressors, strict=True):
            student_map, teacher_map = student.stages[i], teacher.stages[j]
            if regress[0].kernel_size == (1, 1):  # type: ignore[index]  # else it changes the size itself
                student_map, teacher_map = matched(student_map, teacher_map)
            total = total + hint_loss(regress(student_map), teacher_map, self.distance)
        return {"hint": self.weight * total}

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`hint`; in the second of two stages `soft`."""
        if not self.staged:
            return self.hint(student, teacher, batch)
        start, end = self.second["start"], self.second["end"]
        weight = start + (end - start) * self.progress.epoch / max(self.progress.epochs - 1, 1)
        return {"soft": weight * soft_cross_entropy(student.logits, teacher.logits, self.second["temperature"]).mean()}

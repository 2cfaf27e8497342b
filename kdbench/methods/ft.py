"""FT: Kim, Park & Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018
(arXiv 1802.04977).

    L = CE(z_s, y) + weight * mean | n(T(F_s)) - n(P(F_t)) |,   L_P = || D(P(F_t)) - F_t ||^2

where the paraphraser P, three 3x3 convolutions, and its decoder D are trained on the teacher's maps alone, without
labels, to rebuild them from a factor with fewer channels (`rate`), and the translator T, alike but with batch norm, is
trained with the student. All are discarded in the end. n normalises a factor for each sample, and the mean is over all
elements.

`variant: reference` (default) is RepDistiller's: before the norm, a factor is reduced to the mean of its squares over
the channels, as in attention transfer. `variant: paper` divides the whole factor by its norm. Weight 200, rate 0.5, the
last stage map, layers and absolute differences are RepDistiller's.

As the mean is over all elements, a small map gets a larger loss, as in `at`.

`training: joint` (default) is our departure: paraphraser and student are trained side by side, by separate losses, as
no gradient of the student's loss reaches the paraphraser. It costs no further epochs, and the loss can be added to
other methods. `training: staged` is that of the paper and of RepDistiller: the paraphraser is trained first, while the
student waits, and then stays as it is. The learning rate of the paraphraser is a fifth of the recipe's, which makes
0.01 of 0.05 as in RepDistiller for ResNets.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.at import attention
from kdbench.methods.feature_maps import StageChoice, matched, pairs, require_pixels
from kdbench.methods.machinery.stages import Stage, first_stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def factor_loss(student: Tensor, teacher: Tensor, variant: str) -> Tensor:
    """Mean absolute difference of the normalised factors.

    Args:
        student: (B,M,H,W).
        teacher: (B,M,H',W'), constants.
        variant: `reference` or `paper`.

    Returns:
        Scalar, mean over the batch and the elements of a normalised factor.
    """
    student, teacher = matched(student, teacher)
    if variant == "reference":
        return F.l1_loss(attention(student, 2), attention(teacher, 2))
    return F.l1_loss(F.normalize(student.flatten(1), dim=1), F.normalize(teacher.flatten(1), dim=1))


def _layers(convolution: type[nn.Module], widths: list[int], norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [convolution(width, next_width, 3, padding=1), *([nn.BatchNorm2d(next_width)] if norm else [])]
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def translator(width: int, factor_width: int) -> nn.Sequential:
    """From the student's maps (B,width,H,W) to factors (B,factor_width,H,W)."""
    return _layers(nn.Conv2d, [width, width, factor_width, factor_width], norm=True)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's maps (B,width,H,W); `encoder` gives the factors (B,factor_width,H,W)."""

    def __init__(self, width: int, factor_width: int) -> None:
        super().__init__()
        self.encoder = _layers(nn.Conv2d, [width, width, factor_width, factor_width], norm=False)
        self.decoder = _layers(nn.ConvTranspose2d, [factor_width, factor_width, width, width], norm=False)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps, rebuilt from their factors."""
        return self.decoder(self.encoder(maps))


class FT(Method):
    """The student imitates factors of the teacher's maps."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(
        self,
        weight: float,
        stages: StageChoice,
        variant: str,
        rate: float,
        paraphraser_lr: float,
        training: str,
        first_stage: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.weight, self.stage_choice, self.variant, self.rate = weight, stages, variant, rate
        self.paraphraser_lr, self.staged, self.first = paraphraser_lr, training == "staged", first_stage

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a paraphraser and a translator for each.

        Raises:
            UserError: a pair has only one pixel in common, where the reference's normalised factor is always 1.
        """
        self.pairs = pairs(self.stage_choice, student, teacher, "ft")
        if self.variant == "reference":
            require_pixels(self.pairs, student, teacher, "ft")
        widths = [(student.stages[i][0], teacher.stages[j][0]) for i, j in self.pairs]
        factors = [max(1, int(self.rate * width)) for _, width in widths]
        self.paraphrasers = nn.ModuleList(Paraphraser(t, m) for (_, t), m in zip(widths, factors, strict=True))
        self.translators = nn.ModuleList(translator(s, m) for (s, _), m in zip(widths, factors, strict=True))

    def lr_multipliers(self) -> list[tuple[nn.Module, float]]:
        """That of the paraphrasers."""
        return [(self.paraphrasers, self.paraphraser_lr)]

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """A stage with the paraphrasers alone, if training is staged."""
        return [first_stage("paraphraser", self.first, recipe, self.rebuilding)] if self.staged else []

    def rebuilding(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`paraphraser`, the squared error of the rebuilt maps: mean over all elements, summed over the pairs."""
        maps = [teacher.stages[j] for _, j in self.pairs]
        losses = [F.mse_loss(part(each), each) for part, each in zip(self.paraphrasers, maps, strict=True)]
        return {"paraphraser": torch.stack(losses).sum()}

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`factor`, the sum over the pairs of maps, and `paraphraser`, unless that was trained before."""
        losses = []
        for (i, j), translate, paraphraser in zip(self.pairs, self.translators, self.paraphrasers, strict=True):
            with torch.no_grad():
                factor = paraphraser.encoder(teacher.stages[j])  # type: ignore[operator]
            losses.append(factor_loss(translate(student.stages[i]), factor, self.variant))
        distilled = {"factor": self.weight * torch.stack(losses).sum()}
        return distilled if self.staged else distilled | self.rebuilding(student, teacher, batch)

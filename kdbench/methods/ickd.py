"""ICKD: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021.

(No arXiv number is known to us.) This is ICKD-C, the form for classification:

    L = CE(z_s, y) + weight / (B C) * sum_b || G(BN(W F_b^s)) - G(F_b^t) ||_F^2,   G(f)_c = f_c f^T / ||f_c f^T||_2

where f (C, H W) holds the channels of one image's map, and W is a 1x1 convolution without bias to the teacher's C
channels, trained with the student and then discarded. The rows of G are normalised, not the whole matrix. As only
channels are compared, the maps may differ in size. Weight 2.5 and the last stage map are those of the authors' code,
which can add KD: here that is `plus=[kd]`. A row of zeros is not divided by its norm.
"""

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.feature_maps import StageChoice, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def correlation(maps: Tensor) -> Tensor:
    """Correlations G between the channels of each image: maps (B,C,H,W) -> (B,C,C), rows of norm 1."""
    flat = maps.flatten(2)
    gram = flat @ flat.mT
    norms = torch.linalg.vector_norm(gram, dim=2, keepdim=True)
    return gram / torch.where(norms > 0, norms, 1.0)


def ickd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / C, mean over the batch.

    Args:
        student: (B,C,H,W).
        teacher: (B,C,H',W'), constants.

    Returns:
        Scalar.
    """
    return (correlation(student) - correlation(teacher)).square().sum(2).mean()


class ICKD(Method):
    """The student keeps the teacher's similarities between the channels of a map."""

    mixed_labels = True
    reads = ("stages",)

    def __init__(self, weight: float, stages: StageChoice) -> None:
        super().__init__()
        self.weight, self.stage_choice = weight, stages

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a layer to the teacher's channels for each.

        Raises:
            UserError: a map of the teacher has a single channel, whose normalised correlation is always 1.
        """
        self.pairs = pairs(self.stage_choice, student, teacher, "ickd")
        self._require_channels([teacher.stages[j] for _, j in self.pairs])
        channels = [(student.stages[i][0], teacher.stages[j][0]) for i, j in self.pairs]
        self.embeddings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(ours, theirs, 1, bias=False), nn.BatchNorm2d(theirs)) for ours, theirs in channels
        )

    def _require_channels(self, shapes: list[tuple[int, int, int]]) -> None:
        if any(channels == 1 for channels, *_ in shapes):
            raise UserError("ickd cannot compare a stage map of the teacher that has one channel; ickd.stages=[...]")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`ickd`, the sum over the pairs of maps."""
        maps = [(student.stages[i], teacher.stages[j]) for i, j in self.pairs]
        losses = [ickd_loss(embed(s), t) for embed, (s, t) in zip(self.embeddings, maps, strict=True)]
        return {"ickd": self.weight * torch.stack(losses).sum()}

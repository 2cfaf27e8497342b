"""ReviewKD: Chen, Liu, Zhao & Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044).

    L = CE(z_s, y) + w(e) * weight * sum_j HCL(out_j, F_t^j)
    u_n = BN(W_n x_n),   u_j = a_1 BN(W_j x_j) + a_2 up(u_{j+1}),   a = sigmoid(V_j [BN(W_j x_j); up(u_{j+1})])
    out_j = BN(conv3x3(u_j)),   HCL = sum_l 2^-l MSE(pool_l(out), pool_l(F_t)) / sum_l 2^-l

where the x_j are the student's stage maps and, as the deepest, its embedding as a map of one pixel; u_j is brought to
the size of the teacher's map (nearest pixel) before it is passed on to the next shallower map. The levels l of HCL are
the whole map and its averages over 4x4, 2x2 and 1 cells, as far as these are fewer than its pixels.

Weight 5 and the linear warm-up w over 20 epochs are those of mdistiller for CIFAR-100; the weight depends on the pair
of networks. Departure: the maps are those of the networks here, after the ReLU for most; mdistiller takes the
teacher's, and for some pairs the student's, before the ReLU that ends a stage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.feature_maps import StageChoice, pairs
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

_LEVELS = (4, 2, 1)  # sides of the averaged maps


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared differences of two maps at several sizes, each level with half the weight of the one before.

    Args:
        student: (B,C,H,W), after the fusion.
        teacher: (B,C,H,W), constants.

    Returns:
        Scalar, the weighted mean of the levels.
    """
    loss, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in _LEVELS:
        if side < min(student.shape[2:]):
            weight /= 2
            ours, theirs = (F.adaptive_avg_pool2d(maps, side) for maps in (student, teacher))
            loss = loss + weight * F.mse_loss(ours, theirs)
            weights += weight
    return loss / weights


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with what comes from the deeper ones.

    Args:
        channels: of the student's map.
        width: channels of the fused map.
        target_channels: of the teacher's map.
        size: height and width of the teacher's map.
        fuses: whether there is a deeper map.
    """

    def __init__(self, channels: int, width: int, target_channels: int, size: tuple[int, int], fuses: bool) -> None:
        super().__init__()
        self.size = size
        reduction = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce = nn.Sequential(reduction, nn.BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        convolution = nn.Conv2d(width, target_channels, 3, padding=1, bias=False)
        self.expand = nn.Sequential(convolution, nn.BatchNorm2d(target_channels))
        for layer in (reduction, convolution):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # as in the authors' code

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to be compared with the teacher's, and the fused map for the next shallower fusion.

        Args:
            maps: (B,C,H,W) of the student.
            deeper: (B,width,H',W'), the fused map of the next deeper fusion; None for the deepest.

        Returns:
            (B,target_channels,*size) and (B,width,*size).
        """
        fused = self.reduce(maps)
        if self.attention is not None and deeper is not None:
            deeper = _resized(deeper, tuple(fused.shape[2:]))
            own, other = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid().split(1, dim=1)
            fused = own * fused + other * deeper
        fused = _resized(fused, self.size)
        return self.expand(fused), fused


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size, mode="nearest")


def _with_embedding(maps: list[Tensor], features: Features) -> list[Tensor]:
    return [*maps, features.embedding[..., None, None]]


class ReviewKD(Method):
    """The student's maps, each reviewed together with the deeper ones, imitate the teacher's."""

    mixed_labels = True
    reads = ("stages", "embedding")

    def __init__(self, weight: float, warmup_epochs: int, width: int, stages: StageChoice) -> None:
        super().__init__()
        self.weight, self.warmup_epochs, self.width, self.stage_choice = weight, warmup_epochs, width, stages

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pairs of maps and create a fusion for each, and for the embeddings."""
        self.pairs = pairs(self.stage_choice, student, teacher, "reviewkd")
        width = min(self.width, student.embedding)
        shapes = [(student.stages[i][0], *teacher.stages[j]) for i, j in self.pairs]
        fusions = [Fusion(ours, width, theirs, tuple(size), True) for ours, theirs, *size in shapes]  # type: ignore[arg-type]
        deepest = Fusion(student.embedding, width, teacher.embedding, (1, 1), False)
        self.fusions = nn.ModuleList([*fusions, deepest])

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`reviewkd`, the sum over the pairs of maps and the embeddings."""
        ours = _with_embedding([student.stages[i] for i, _ in self.pairs], student)
        theirs = _with_embedding([teacher.stages[j] for _, j in self.pairs], teacher)
        losses, deeper = [], None
        for fusion, maps, target in zip(reversed(self.fusions), reversed(ours), reversed(theirs), strict=True):
            out, deeper = fusion(maps, deeper)
            losses.append(hcl_loss(out, target))
        warmup = self.progress.warmup(self.warmup_epochs)
        return {"reviewkd": warmup * self.weight * torch.stack(losses).sum()}

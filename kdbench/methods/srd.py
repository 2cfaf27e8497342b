"""SRD: Miles & Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024 (arXiv
2303.11098); the name, Simple Recipe Distillation, is that of its repository.

    L = CE(z_s, y) + weight * log sum_bd | BN(P e_s)_bd - BN(e_t)_bd |^4 + kd_weight T^2 KL( p_t || p_s )

where e are the embeddings, the inputs of the classifiers, P is a matrix that is trained with the student and then
discarded, and BN standardises each channel over the batch, without scale and shift (eps 1e-4, as in the authors' code).
The logarithm divides the gradient by the sum itself, so that a mean in its place would give the same gradient. The loss
may be negative; equal embeddings give the logarithm of the smallest float32 number, -87, and no gradient.

The defaults are those of the authors' code for ImageNet (ResNet34 -> ResNet18): weight 2, KL with T = 1 and weight 1.
Its projector has a bias, which BN takes away again; here it has none. The statistics are always those of the batch: no
running means are kept, because the loss is computed in training alone. Batches of one sample, which have none, are
refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.stages import Stage
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

EPS = 1e-4  # added to the variance of each channel


def _standardised(embedding: Tensor) -> Tensor:
    return F.batch_norm(embedding, None, None, training=True, eps=EPS)


def log_sum_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """The logarithm of sum_bd |BN(s)_bd - BN(t)_bd|^power.

    Args:
        student: embeddings (B,D), projected.
        teacher: embeddings (B,D), constants.
        power: at least 1.

    Returns:
        Scalar, which may be negative.

    Raises:
        ValueError: the batch has one sample only.
    """
    total = (_standardised(student) - _standardised(teacher)).abs().pow(power).sum()
    return total.clamp(min=torch.finfo(total.dtype).tiny).log()


class SRD(Method):
    """The student's embedding, projected and standardised, imitates the teacher's."""

    per_sample = False
    mixed_labels = True
    reads = ("embedding", "logits")

    def __init__(self, weight: float, power: float, kd_weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.power, self.kd_weight, self.temperature = weight, power, kd_weight, temperature

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Create the projector."""
        self.projector = nn.Linear(student.embedding, teacher.embedding, bias=False)

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """No stages; this is where a method sees the recipe.

        Raises:
            UserError: the batches have one sample only.
        """
        if recipe["batch_size"] == 1:
            raise UserError(
                "recipe.batch_size=1 is not possible with srd, only 2 or more: it standardises over the batch"
            )
        return []

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`srd`, and `kd` unless its weight is 0."""
        projected = self.projector(student.embedding)
        losses = {"srd": self.weight * log_sum_loss(projected, teacher.embedding, self.power)}
        if self.kd_weight:
            losses["kd"] = self.kd_weight * kd_loss(student.logits, teacher.logits, self.temperature)
        return losses

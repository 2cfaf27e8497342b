"""SKD, a re-implementation: Yuan, Lang & Quan, "Student-friendly Knowledge Distillation", Knowledge-Based Systems 2024
(arXiv 2305.10893).

    L = (1 - alpha) CE(z_s, y) + alpha T^2 KL( softmax(z~ / T) || softmax(z_s / T) ),   z~ = u + g(u),   u = z_t / tau

The teacher's logits are softened, then simplified by attention. The simplifier g is trained together with the student
by the same distillation loss, through its target. This much is in the abstract of the paper; its text and its code were
not available. The rest is our interpretation, with options for most of it: attention over the samples of a batch (each
sample is a token of K logits; `width`, `heads`) with a residual connection; an output projection that starts at zero,
so that the first step is plain KD (with `softening: 1`); a tenth of the student's learning rate (`lr`); and nothing
that keeps z~ near z_t (`anchor: 0`; otherwise anchor T^2 KL(u || z~) is added). The tokens are normalised (mean 0,
variance 1) before the projections: without that, the simplifier diverged within an epoch at a learning rate of 0.05.

As nothing else in the loss ties z~ to the teacher, each epoch records how far it has moved: the KL from the raw teacher
and the entropy, both at temperature T, the agreement with the teacher's first choice, and the accuracy of z~ on the
training labels. Because of the attention, a target depends on the rest of the batch (with several devices, of the
device's share of it). The simplifier is not used in evaluation.
A loss on the logits that is added by `plus` uses the simplified logits, too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import KD, kd_loss
from kdbench.models.features import Features, Shapes


class Simplifier(nn.Module):
    """Attention over the samples of a batch, logits (B,K) -> (B,K); before training, it only softens the logits.

    Args:
        num_classes: K.
        width: of the queries, keys and values of all heads together.
        heads: number of attention heads.
        softening: tau, by which the logits are divided.
    """

    def __init__(self, num_classes: int, width: int, heads: int, softening: float) -> None:
        super().__init__()
        self.heads, self.softening = heads, softening
        self.q, self.k, self.v = (nn.Linear(num_classes, width) for _ in range(3))
        self.out = nn.Linear(width, num_classes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """Simplified logits (B,K)."""
        softened = logits / self.softening
        tokens = F.layer_norm(softened, softened.shape[1:])
        q, k, v = (layer(tokens).unflatten(1, (self.heads, -1)).transpose(0, 1) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)  # (heads, B, width / heads)
        return softened + self.out(attended.transpose(0, 1).flatten(1))


class SKD(KD):
    """KD with simplified targets; the simplifier is trained together with the student."""

    per_sample = False

    def __init__(
        self,
        temperature: float,
        alpha: float,
        softening: float,
        width: int | None,
        heads: int,
        lr: float,
        anchor: float,
    ) -> None:
        super().__init__(temperature, alpha)
        self.softening, self.width, self.heads, self.lr, self.anchor = softening, width, heads, lr, anchor

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Create the simplifier.

        Raises:
            UserError: the width is not divisible by the number of heads.
        """
        width = self.width or student.num_classes
        if width % self.heads:
            raise UserError(
                f"skd.heads={self.heads} is not allowed: it must divide the width of the attention, {width}"
            )
        self.simplifier = Simplifier(student.num_classes, width, self.heads, self.softening)

    def lr_multipliers(self) -> list[tuple[nn.Module, float]]:
        """That of the simplifier."""
        return [(self.simplifier, self.lr)]

    def transform_teacher(self, teacher: Features, batch: Batch) -> Features:
        """The teacher's features with simplified logits."""
        self.raw = teacher.logits / self.softening
        simplified = self.simplifier(teacher.logits)
        with torch.no_grad():
            log_p = (simplified / self.temperature).log_softmax(1)
            choice = simplified.argmax(1)
            accuracy = batch.over_labels(lambda labels: (choice == labels).to(log_p).mean())
            self.watched = {
                "kl_to_raw": kd_loss(simplified, self.raw, self.temperature) / self.temperature**2,
                "entropy": -(log_p.exp() * log_p).sum(1).mean(),
                "agreement": (choice == self.raw.argmax(1)).to(log_p).mean(),
                "accuracy": accuracy,
            }
        return teacher._replace(logits=simplified)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd`, and `anchor` unless its weight is 0."""
        losses = super().losses(student, teacher, batch)
        if self.anchor:
            losses["anchor"] = self.anchor * kd_loss(teacher.logits, self.raw, self.temperature)
        return losses

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """Warn if the simplified targets have moved away from the teacher."""
        if watched and watched["agreement"] < 0.5:
            return (
                f"the simplified targets agree with the teacher on only {watched['agreement']:.0%} of the images "
                f"(entropy {watched['entropy']:.3g} nats): they may have collapsed; method.anchor > 0 prevents it"
            )
        return None

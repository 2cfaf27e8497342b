"""SKD, a re-implementation: Yuan, Lang & Quan, "Student-friendly Knowledge Distillation", Knowledge-Based Systems 2024
(arXiv 2305.10893).

    L = (1 - alpha) CE(z_s, y) + alpha T^2 KL( softmax(z~ / T) || softmax(z_s / T) ),   z~ = u + g(u),   u = z_t / tau

The teacher's logits are softened, then simplified by attention, and the simplifier g is trained together with the
student by the unchanged distillation loss, through its target. That much is in the paper's abstract; its text and code
were not at hand. Our reading, each a key: attention over the samples of a batch (tokens of K logits, `width`, `heads`),
a residual, an output projection that starts at zero, so that the first step is plain KD (with `softening: 1`), a
learning rate of a tenth of the student's, and no weight on anything that keeps z~ near z_t (`anchor: 0`, else
anchor T^2 KL(u || z~)). The tokens are normalised (mean 0, variance 1) before the projections: on bare logits the
simplifier blew up within an epoch at a learning rate of 0.05.

Nothing else in the loss holds z~ to the teacher, so each epoch records how far it has moved: KL from the raw teacher
and entropy at temperature T, agreement with the teacher's first choice, and its own accuracy on the training labels.
The attention makes a target depend on the rest of the batch, whatever its size (with several devices: of a device's
share of it); in evaluation nothing of it is used.
A logit loss added by `plus` sees the simplified logits too.
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
    """Attention over a batch: logits (B,K) -> (B,K); softened logits alone until it has learnt something.

    Args:
        num_classes: K.
        width: of queries, keys and values, all heads together.
        heads: of the attention.
        softening: tau.
    """

    def __init__(self, num_classes: int, width: int, heads: int, softening: float) -> None:
        super().__init__()
        self.heads, self.softening = heads, softening
        self.q, self.k, self.v = (nn.Linear(num_classes, width) for _ in range(3))
        self.out = nn.Linear(width, num_classes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, logits: Tensor) -> Tensor:
        """As the class says."""
        soft = logits / self.softening
        token = F.layer_norm(soft, soft.shape[1:])
        q, k, v = (layer(token).unflatten(1, (self.heads, -1)).transpose(0, 1) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (heads, B, width / heads)
        return soft + self.out(mixed.transpose(0, 1).flatten(1))


class SKD(KD):
    """KD whose targets are learnt from the teacher's, together with the student."""

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
        """Make the simplifier.

        Raises:
            UserError: the heads do not share the width evenly.
        """
        width = self.width or student.num_classes
        if width % self.heads:
            raise UserError(
                f"skd.heads={self.heads} is not allowed: it must divide the width of the attention, {width}"
            )
        self.simplifier = Simplifier(student.num_classes, width, self.heads, self.softening)

    def lr_multipliers(self) -> list[tuple[nn.Module, float]]:
        """The simplifier."""
        return [(self.simplifier, self.lr)]

    def transform_teacher(self, teacher: Features, batch: Batch) -> Features:
        """The teacher with simplified logits."""
        self.raw = teacher.logits / self.softening
        simplified = self.simplifier(teacher.logits)
        with torch.no_grad():
            log_p = (simplified / self.temperature).log_softmax(1)
            choice = simplified.argmax(1)
            self.watched = {
                "kl_to_raw": kd_loss(simplified, self.raw, self.temperature) / self.temperature**2,
                "entropy": -(log_p.exp() * log_p).sum(1).mean(),
                "agreement": (choice == self.raw.argmax(1)).to(log_p).mean(),
                "accuracy": (choice == batch.labels).to(log_p).mean(),
            }
        return teacher._replace(logits=simplified)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd`, and `anchor` where it has a weight."""
        losses = super().losses(student, teacher, batch)
        if self.anchor:
            losses["anchor"] = self.anchor * kd_loss(teacher.logits, self.raw, self.temperature)
        return losses

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """Warn where the simplified target has left the teacher."""
        if watched and watched["agreement"] < 0.5:
            return (
                f"the simplified target agrees with the teacher on {watched['agreement']:.0%} of the images only "
                f"(entropy {watched['entropy']:.3g} nats): it may have collapsed; method.anchor > 0 holds it"
            )
        return None

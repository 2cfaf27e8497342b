"""DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679).

    L = CE(z_s, y) + w(e) ( alpha T^2 KL( b_t || b_s ) + beta T^2 KL( q_t || q_s ) )

with b = (p_y, 1 - p_y), the softened probability of the label against all others, and q the softened probabilities
among the other classes. Both are computed from log-probabilities, so that nothing is lost when p_y is close to 0 or 1.
Defaults are those of mdistiller for CIFAR-100: T = 4, alpha = 1, beta = 8 (6 or 2 for some pairs), and a weight w that
rises linearly over the first 20 epochs. With two classes there is one other class, and the second term is 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log b (B,2) and log q (B,K-1) of logits (B,K)."""
    place = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, place + (place >= labels[:, None]))
    binary = torch.stack([logits.gather(1, labels[:, None]).squeeze(1), others.logsumexp(1)], dim=1)
    return binary.log_softmax(1), others.log_softmax(1)


def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL( b_t || b_s ) and T^2 KL( q_t || q_s ), means over the batch, in nats times T^2.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).
        temperature: T > 0.
    """
    pairs = zip(_split(student / temperature, labels), _split(teacher / temperature, labels), strict=True)
    target, other = (F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) for log_s, log_t in pairs)
    return temperature**2 * target, temperature**2 * other


class DKD(Method):
    """Soft targets, split into the label against the rest and the rest among themselves."""

    reads = ("logits",)
    mixed_labels = False  # the split is at one label: no mixup, no CutMix

    def __init__(self, temperature: float, alpha: float, beta: float, warmup_epochs: int) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.warmup_epochs = temperature, alpha, beta, warmup_epochs

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse what leaves nothing to learn.

        Raises:
            UserError: two classes and no weight on the only term that there is.
        """
        if student.num_classes == 2 and not self.alpha:
            raise UserError("dkd.alpha=0 is not possible with 2 classes: the term of the other classes is 0")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`target`, the label against the rest, and `other`, the rest among themselves."""
        target, other = dkd_terms(student.logits, teacher.logits, batch.labels, self.temperature)
        weight = self.progress.warmup(self.warmup_epochs)
        return {"target": weight * self.alpha * target, "other": weight * self.beta * other}

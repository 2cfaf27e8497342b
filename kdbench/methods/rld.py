"""RLD: Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025 (arXiv 2408.07703).

    L = CE(z_s, y) + r(e) ( alpha T1^2 KL( b_t || b_s ) + beta T^2 KL( q_t || q_s ) )
    b_t = (max_k p_t,k, 1 - max_k p_t,k),   b_s = (p_s,y, 1 - p_s,y),   p = softmax(z / T1)

where q is the softmax at T over the classes that the teacher ranks below the label: the label itself, and whatever the
teacher gives a logit at least as large, are left out for both networks. The student thus learns how certain the teacher
is, whether the teacher is right or wrong, and how the other classes compare, but nothing that contradicts the label. As
it trusts the label, label noise reaches the student through both terms.

Means over the batch. r rises linearly to 1 over the first epochs. Where no class is left, or only one (always so with
two classes), the second term is 0. Log-probabilities are computed directly, so that nothing is lost when p is close to
0 or 1. The defaults are those of the authors' code; the authors tune beta and T for each pair of networks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

LEFT_OUT = -1e9  # a float32 logit whose probability is 0 beside any other, with finite differences


def _one_against_the_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities (B,2) of one class (B,) of each sample and of all others together, from logits (B,K)."""
    chosen = classes[:, None]
    rest = logits.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, chosen), rest], dim=1).log_softmax(1)


def confidence_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T1^2 KL( b_t || b_s ): the student gives the label the probability that the teacher gives its own choice.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).
        temperature: T1 > 0.

    Returns:
        Scalar, mean over the batch, in nats times T1^2.
    """
    log_s = _one_against_the_rest(student / temperature, labels)
    log_t = _one_against_the_rest(teacher / temperature, teacher.argmax(1))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def correlation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL( q_t || q_s ) over the classes that the teacher ranks below the label.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).
        temperature: T > 0.

    Returns:
        Scalar, mean over the batch, in nats times T^2.
    """
    above = teacher >= teacher.gather(1, labels[:, None])
    return kd_loss(student.masked_fill(above, LEFT_OUT), teacher.masked_fill(above, LEFT_OUT), temperature)


class RLD(Method):
    """Soft targets without what contradicts the label."""

    mixed_labels = False  # both terms are about one label
    reads = ("logits",)

    def __init__(
        self, temperature: float, label_temperature: float, alpha: float, beta: float, warmup_epochs: int
    ) -> None:
        super().__init__()
        self.temperature, self.label_temperature = temperature, label_temperature
        self.alpha, self.beta, self.warmup_epochs = alpha, beta, warmup_epochs

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse what leaves nothing to learn.

        Raises:
            UserError: two classes, and no weight on the only term that is not 0.
        """
        if student.num_classes == 2 and not self.alpha:
            raise UserError("rld.alpha=0 is not possible with 2 classes, only > 0: the other term is always 0")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`confidence`, the label against the rest, and `correlation`, the classes below the label."""
        ramp = self.progress.warmup(self.warmup_epochs)
        confidence = confidence_loss(student.logits, teacher.logits, batch.labels, self.label_temperature)
        correlation = correlation_loss(student.logits, teacher.logits, batch.labels, self.temperature)
        return {"confidence": ramp * self.alpha * confidence, "correlation": ramp * self.beta * correlation}

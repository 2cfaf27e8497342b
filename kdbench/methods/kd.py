"""Hinton KD: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531).

    L = (1 - alpha) CE(z_s, y) + alpha T^2 / B * sum_i KL( softmax(z_t,i / T) || softmax(z_s,i / T) )

The factor T^2 keeps the size of the gradient when T changes (section 2 of the paper); it multiplies the soft term
only. The loss is a mean over the batch and a sum over the classes; torch's `reduction="mean"`, which is a mean over all
elements, would make it K times weaker. The defaults T = 4 and alpha = 0.9 are those of RepDistiller and mdistiller; the
paper gives none for CIFAR.
"""

from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened outputs.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        temperature: T > 0.

    Returns:
        Scalar, mean over the batch, in nats times T^2.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """- sum_k softmax(z_t / T)_k log softmax(z_s / T)_k, without T^2: the soft term of FitNets and BSS.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        temperature: T > 0.

    Returns:
        (B,), in nats.
    """
    return -((teacher / temperature).softmax(1) * (student / temperature).log_softmax(1)).sum(1)


class KD(Method):
    """Soft targets: the student learns the teacher's softened outputs."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, alpha: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha
        self.label_weight = 1 - alpha

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd`, the soft term."""
        return {"kd": self.alpha * kd_loss(student.logits, teacher.logits, self.temperature)}

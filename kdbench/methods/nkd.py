"""NKD: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
Loss and Customized Soft Labels", ICCV 2023 (arXiv 2303.13005).

    L = CE(z_s, y) - 1/B sum_i p_t,y log p_s,y - gamma T^2 / B sum_i sum_{k != y} q_t,k log q_s,k

with p = softmax(z), without a temperature, and q the softmax of z / T over the classes other than the label, so that
the probabilities of both networks have the same sum. Both terms are cross-entropies: they do not fall to 0, and a
constant in the teacher makes no difference. They are computed in log-space from the logits of the other classes, where
other public code subtracts 1000 from that of the label.

T = 3 and gamma = 3.5 are the authors' values for CIFAR-100 (T = 1 and gamma = 1.5 on ImageNet). In a batch with two
labels for each image, both terms are the weighted mean of those for one label each. With two classes there is one
other class, and the last term is 0.
"""

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B,K-1) of the classes other than the labels (B,), of logits (B,K)."""
    place = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, place + (place >= labels[:, None]))


def target_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """- p_t,y log p_s,y, the cross-entropy on the labels weighted by the teacher's probability of them.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).

    Returns:
        Scalar, mean over the batch, in nats.
    """
    log_p, weights = student.log_softmax(1), teacher.softmax(1)
    return -(weights.gather(1, labels[:, None]) * log_p.gather(1, labels[:, None])).mean()


def other_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """- T^2 sum_{k != y} q_t,k log q_s,k, the cross-entropy among the other classes.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).
        temperature: T > 0.

    Returns:
        Scalar, mean over the batch, in nats times T^2.
    """
    log_s = (others(student, labels) / temperature).log_softmax(1)
    target = (others(teacher, labels) / temperature).softmax(1)
    return -(temperature**2) * (target * log_s).sum(1).mean()


class NKD(Method):
    """Soft targets, for the label and, normalised, for the other classes among themselves."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, gamma: float) -> None:
        super().__init__()
        self.temperature, self.gamma = temperature, gamma

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`target`, for the label, and `other`, for the other classes."""
        logits = student.logits, teacher.logits
        target = batch.over_labels(lambda labels: target_loss(*logits, labels))
        other = batch.over_labels(lambda labels: other_loss(*logits, labels, self.temperature))
        return {"target": target, "other": self.gamma * other}

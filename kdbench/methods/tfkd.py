"""Teacher-free KD: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020
(arXiv 1909.11723).

`tfkd_self`, where the teacher is a network of the same architecture as the student, trained before it:

    L = (1 - alpha) CE + alpha m T^2 KL( p_t^T || p_s^T ),   KL reduced by a mean over batch *and classes*

`tfkd_reg`, with a virtual teacher v that gives the label a probability of 0.99 and shares the rest evenly among the
other classes:

    L = (1 - alpha) CE + alpha m KL( softmax(v / T) || p_s )

Both are computed as in the authors' code, with its values for ResNet18. That code divides by B K, so in the usual
convention (`reduction: batchmean`) the weight is alpha m / K. In `tfkd_reg` it passes the probabilities v to a softmax
as if they were logits: with T = 20 and 100 classes the target is 0.0105 for the label and 0.0100 elsewhere, so the
method is label smoothing with eps = alpha m / K / (1 - alpha + alpha m / K), which is 0.10 for the defaults and 100
classes. `target: tempered` is what the paper describes, v^(1/T) normalised; `raw` is v itself. The paper softens the
student's output as well (`student_temperature: same`); the code does not on CIFAR-100. `tfkd_reg` has no factor T^2.
"""

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.kd import kd_loss
from kdbench.methods.method import Method, MethodWithoutTeacher
from kdbench.models.features import Features


def virtual_teacher(labels: Tensor, num_classes: int, correct: float, temperature: float, target: str) -> Tensor:
    """Probabilities (B,K) of the virtual teacher.

    Args:
        labels: (B,).
        num_classes: K.
        correct: probability of the label, before `target` is applied.
        temperature: T > 0.
        target: `softmax` of the probabilities divided by T, `tempered` or `raw`.
    """
    rest = (1 - correct) / (num_classes - 1)
    probabilities = torch.full((len(labels), num_classes), rest, dtype=torch.get_default_dtype(), device=labels.device)
    probabilities = probabilities.scatter(1, labels[:, None], correct)
    if target == "softmax":
        return (probabilities / temperature).softmax(1)
    if target == "tempered":
        return (probabilities.log() / temperature).softmax(1)
    return probabilities


def regularisation_loss(logits: Tensor, target: Tensor, temperature: float, reduction: str) -> Tensor:
    """KL( target || softmax(logits / T) ), without T^2.

    Args:
        logits: (B,K).
        target: probabilities (B,K), constants.
        temperature: T > 0.
        reduction: `mean` over batch and classes, or `batchmean`.

    Returns:
        Scalar, in nats.
    """
    log_q = (logits / temperature).log_softmax(1)
    total = (torch.xlogy(target, target) - target * log_q).sum()
    return total / (logits.numel() if reduction == "mean" else len(logits))


class TfKDSelf(Method):
    """Soft targets from a teacher of the student's own architecture."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, alpha: float, multiplier: float, reduction: str) -> None:
        super().__init__()
        self.temperature, self.weight, self.reduction = temperature, alpha * multiplier, reduction
        self.label_weight = 1 - alpha

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd`, the soft term."""
        classes = student.logits.shape[1] if self.reduction == "mean" else 1
        return {"kd": self.weight / classes * kd_loss(student.logits, teacher.logits, self.temperature)}


class TfKDReg(MethodWithoutTeacher):
    """Soft targets from a virtual teacher."""

    def __init__(
        self,
        temperature: float,
        alpha: float,
        multiplier: float,
        correct: float,
        target: str,
        student_temperature: str,
        reduction: str,
    ) -> None:
        super().__init__()
        self.temperature, self.weight, self.reduction = temperature, alpha * multiplier, reduction
        self.correct, self.target = correct, target
        self.student_temperature = temperature if student_temperature == "same" else 1.0
        self.label_weight = 1 - alpha

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """`tfkd_reg`, the soft term."""
        logits = student.logits
        target = virtual_teacher(batch.labels, logits.shape[1], self.correct, self.temperature, self.target)
        loss = regularisation_loss(logits, target.to(logits), self.student_temperature, self.reduction)
        return {"tfkd_reg": self.weight * loss}

"""BSS: Heo, Lee, Yun & Choi, "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", AAAI 2019
(arXiv 1805.05532).

    L = CE(z_s, y) + a_e SCE_T(z_s(x), z_t(x)) + b_e mean_x' SCE_T(z_s(x'), z_t(x'))

where SCE_T is the cross-entropy of the softened outputs, without a factor T^2. The x' start as images that both
networks classify correctly and move along the teacher's gradient until they cross its decision boundary to another
class, which is drawn with the teacher's probability for it:

    x <- clip( x + eta (s_b - s_k + 1e-4) g / ||g||_2 ),   g = d(s_k - s_b)/dx,

where s_b and s_k are the teacher's logits of the base class and of the drawn class. As in the authors' code, a step
divides by the norm of g, not by its square, and each step starts where the previous one ended. The defaults are those
of that code, too: T = 3; a_e falls from 4 to 1, and b_e from 2 to 0 at three quarters of the training, both linearly in
the epoch; 10 steps with eta = 0.3; 64 samples of a batch of 256 (`attack_fraction: 0.25`), and if more qualify, those
on which the networks differ most.

Departures: the steps are taken in the teacher's normalised space, as in that code, but pixels are clipped to their true
range in each channel (there: to [-2.5, 2.5] in all). The batch of attacked images has a fixed size, so that the host
never waits for the device: if fewer samples qualify, some are repeated with weight 0, which still count in the
student's batch statistics; if none qualifies, other samples take their places. All 10 steps are always computed;
samples that have crossed the boundary stay where they are. The optimiser is not created anew when the learning rate
drops.
Cost: 10 forward and backward passes of the teacher for a quarter of the batch, during the first three quarters of the
training.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.kd import soft_cross_entropy
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.method import Method
from kdbench.models.features import Features


def linear_decay(start: float, end: float, until: float, epoch: int, epochs: int) -> float:
    """A weight that falls linearly from `start` to `end`, which it reaches at a fraction of the training.

    Args:
        start: the weight before the first epoch.
        end: the weight from `until` on.
        until: the fraction of the training, in (0, 1].
        epoch: counted from 0; the weight returned is that at the end of this epoch.
        epochs: of the training.
    """
    return end + (start - end) * max(1 - (epoch + 1) / epochs / until, 0.0)


def base_samples(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Samples that both networks classify correctly; if there are too many, those on which they differ most.

    The measure is the squared difference of their probabilities, summed over all classes but the label.

    Args:
        student: logits (B,K).
        teacher: logits (B,K).
        labels: (B,).
        count: number of slots, at most B.

    Returns:
        Indices (count,) and their weights (count,): 1/count each, unless only n < count samples qualify. Then the first
        n slots have weight 1/n, and the others, which repeat the first ones, weight 0. If no sample qualifies, the
        indices are those of `count` other samples, all with weight 0.
    """
    correct = (teacher.argmax(1) == labels) & (student.argmax(1) == labels)
    squares = (teacher.softmax(1) - student.softmax(1)).square()
    difference = squares.scatter(1, labels[:, None], 0.0).sum(1)
    order = torch.where(correct, difference, -1.0).argsort(descending=True, stable=True)
    needed = correct.sum().clamp(max=count)
    slots = torch.arange(count, device=labels.device)
    index = order[slots % torch.where(needed > 0, needed, count)]
    return index, (slots < needed).to(student.dtype) / needed.clamp(min=1)


def attack_classes(teacher: Tensor) -> Tensor:
    """A class (N,) for each of the logits (N,K), drawn by the teacher's probabilities of all but its first choice."""
    others = teacher.scatter(1, teacher.argmax(1, keepdim=True), -torch.inf)
    # The argmax of logits plus Gumbel noise is a draw from their softmax; torch.multinomial would sync with the host.
    return (others - torch.empty_like(others).exponential_().log()).argmax(1)


def boundary_samples(
    score: Callable[[Tensor], Tensor], images: Tensor, target: Tensor, steps: int, step_size: float, scale: Tensor
) -> Tensor:
    """Images moved over the decision boundary to another class.

    Args:
        score: from images (N,C,H,W) to the teacher's logits (N,K).
        images: in [0, 1].
        target: (N,), the class to reach.
        steps: number of steps; a sample that has crossed the boundary makes no more.
        step_size: eta.
        scale: (1,C,1,1), 1 / standard deviation of the teacher's normalisation; gradient, norm and step are those in
            the normalised space.

    Returns:
        Images (N,C,H,W) in [0, 1], constants.
    """
    base = None
    for _ in range(steps):
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = score(images)
            predicted = logits.detach().argmax(1, keepdim=True)
            base = predicted if base is None else base
            gap = logits.gather(1, base) - logits.gather(1, target[:, None])
            (gradient,) = torch.autograd.grad(-gap.sum(), images)
        gradient = gradient / scale
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1, keepdim=True).clamp(min=1e-12)
        stride = step_size * (gap.detach() + 1e-4) / norm * (predicted == base)
        images = (images.detach() + stride[..., None, None] * gradient / scale).clamp(0, 1)
    return images.detach()


class BSS(Method):
    """Soft targets, also for samples near the teacher's decision boundary."""

    reads = ("logits", "network")

    def __init__(
        self,
        temperature: float,
        kd_start: float,
        kd_end: float,
        attack_start: float,
        attack_until: float,
        attack_fraction: float,
        steps: int,
        step_size: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.kd_start, self.kd_end = kd_start, kd_end
        self.attack_start, self.attack_until, self.attack_fraction = attack_start, attack_until, attack_fraction
        self.steps, self.step_size = steps, step_size

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd`, the soft term on the original images."""
        weight = linear_decay(self.kd_start, self.kd_end, 1.0, *self.progress)
        return {"kd": weight * soft_cross_entropy(student.logits, teacher.logits, self.temperature).mean()}

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Also `bss`, as long as its weight is not 0."""
        student, teacher = self.forward_both(batch)
        losses = self.named_losses(student, teacher, batch)
        weight = linear_decay(self.attack_start, 0.0, self.attack_until, *self.progress)
        if weight > 0:
            losses["bss"] = weight * self.boundary(student.logits.detach(), teacher.logits, batch)
        return losses

    def boundary(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Mean soft cross-entropy over the attacked images, which are chosen by the logits (B,K) of a batch."""
        with without_autocast(batch.images):
            count = max(1, round(self.attack_fraction * len(batch.labels)))
            index, weights = base_samples(student.float(), teacher.float(), batch.labels, count)
            target = attack_classes(teacher.float()[index])
        scale = self.teacher.network.scale
        images = boundary_samples(self._score, batch.images[index], target, self.steps, self.step_size, scale)
        student_logits, teacher_logits = self.student(images).logits, self.teacher(images).logits
        with without_autocast(batch.images):
            student, teacher = student_logits.float(), teacher_logits.float()
            return (weights * soft_cross_entropy(student, teacher, self.temperature)).sum()

    def _score(self, images: Tensor) -> Tensor:
        return self.teacher.logits(images).float()

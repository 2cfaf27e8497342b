"""BSS: Heo, Lee, Yun & Choi, "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", AAAI 2019
(arXiv 1805.05532).

    L = CE(z_s, y) + a_e SCE_T(z_s(x), z_t(x)) + b_e mean_x' SCE_T(z_s(x'), z_t(x'))

with SCE_T the cross-entropy of softened outputs, without T^2. The x' are images that both networks classify rightly,
walked along the teacher's gradient until they are over its boundary to another class, which is drawn with the teacher's
probability for it:

    x <- clip( x + eta (s_b - s_k + 1e-4) g / ||g||_2 ),   g = d(s_k - s_b)/dx,

s_b and s_k being the teacher's logits of the base and of the drawn class. The walk divides by the norm of g, not by its
square, and goes on from the point reached, as in the authors' code. Defaults are that code's: T = 3; a_e from 4 to 1
and b_e from 2 to 0 at three quarters of the training, linear in the epoch; 10 steps of eta = 0.3; 64 samples in a batch
of 256, where there are more those on which the networks differ most, hence `attack_fraction: 0.25`.

Departures: the walk is in the teacher's normalised space, as there, but the clip is to the true range of pixels in each
channel (there: to [-2.5, 2.5] in all). The batch of attacked images has a fixed size, so nothing waits for the device:
where fewer qualify, some come twice, with no weight, and count twice in the student's batch statistics; where none
does, others take their places there. All 10 steps are always made; samples that have crossed stay. The optimiser is
not made anew when the learning rate drops.
Cost: 10 forward and backward passes of the teacher for a quarter of the batch, until three quarters of the training.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.kd import soft_cross_entropy
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.method import Method
from kdbench.models.features import Features


def falling(start: float, end: float, until: float, epoch: int, epochs: int) -> float:
    """A weight that falls linearly from `start` to `end`, reached at the fraction `until` of the training.

    Args:
        start: before the first epoch.
        end: from `until` on.
        until: in (0, 1].
        epoch: counted from 0; the weight is that of its end.
        epochs: of the training.
    """
    return end + (start - end) * max(1 - (epoch + 1) / epochs / until, 0.0)


def base_samples(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Samples that both networks classify rightly; of too many those on which they differ most.

    They differ by the squared difference of their probabilities, summed over all classes but the label.

    Args:
        student: logits (B,K).
        teacher: logits (B,K).
        labels: (B,).
        count: number of slots, at most B.

    Returns:
        Indices (count,), and their weights (count,): 1/n in the n slots that are needed and 0 in the others, which
        repeat the first ones; where no sample qualifies, `count` others, all with weight 0.
    """
    right = (teacher.argmax(1) == labels) & (student.argmax(1) == labels)
    squares = (teacher.softmax(1) - student.softmax(1)).square()
    difference = squares.scatter(1, labels[:, None], 0.0).sum(1)
    order = torch.where(right, difference, -1.0).argsort(descending=True, stable=True)
    needed = right.sum().clamp(max=count)
    slots = torch.arange(count, device=labels.device)
    index = order[slots % torch.where(needed > 0, needed, count)]
    return index, (slots < needed).to(student.dtype) / needed.clamp(min=1)


def attack_classes(teacher: Tensor) -> Tensor:
    """A class for each of N logits (N,K), not the first choice, drawn by the teacher's probabilities of the others."""
    others = teacher.scatter(1, teacher.argmax(1, keepdim=True), -torch.inf)
    # adding Gumbel noise and taking the largest draws from the softmax; torch.multinomial waits for the device
    return (others - torch.empty_like(others).exponential_().log()).argmax(1)


def boundary_samples(
    score: Callable[[Tensor], Tensor], images: Tensor, target: Tensor, steps: int, step_size: float, scale: Tensor
) -> Tensor:
    """Images walked over the boundary to another class.

    Args:
        score: from images (N,C,H,W) to the teacher's logits (N,K).
        images: in [0, 1].
        target: (N,), the class to reach.
        steps: of the walk, for samples that have not crossed yet.
        step_size: eta.
        scale: (1,C,1,1), 1 / standard deviation of the teacher's normalisation; gradient, norm and step are taken
            in the normalised space.

    Returns:
        Images (N,C,H,W) in [0, 1], constants.
    """
    base = None
    for _ in range(steps):
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = score(images)
            first = logits.detach().argmax(1, keepdim=True)
            base = first if base is None else base
            ahead = logits.gather(1, base) - logits.gather(1, target[:, None])
            (slope,) = torch.autograd.grad(-ahead.sum(), images)
        slope = slope / scale
        length = torch.linalg.vector_norm(slope.flatten(1), dim=1, keepdim=True).clamp(min=1e-12)
        stride = step_size * (ahead.detach() + 1e-4) / length * (first == base)
        images = (images.detach() + stride[..., None, None] * slope / scale).clamp(0, 1)
    return images.detach()


class BSS(Method):
    """Soft targets, also on samples near the teacher's decision boundary."""

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
        """`kd`: the soft term on the images as they are."""
        weight = falling(self.kd_start, self.kd_end, 1.0, *self.progress)
        return {"kd": weight * soft_cross_entropy(student.logits, teacher.logits, self.temperature).mean()}

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`bss` too, as long as its weight is not 0."""
        student, teacher = self.forward_both(batch.images)
        losses = self.named_losses(student, teacher, batch)
        weight = falling(self.attack_start, 0.0, self.attack_until, *self.progress)
        if weight > 0:
            losses["bss"] = weight * self.boundary(student.logits.detach(), teacher.logits, batch)
        return losses

    def boundary(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Mean soft cross-entropy over the attacked images of a batch; logits (B,K) choose them."""
        with without_autocast(batch.images):
            count = max(1, round(self.attack_fraction * len(batch.labels)))
            index, share = base_samples(student.float(), teacher.float(), batch.labels, count)
            target = attack_classes(teacher.float()[index])
        images = boundary_samples(
            lambda seen: self.teacher.logits(seen).float(), batch.images[index], target, self.steps, self.step_size,
            self.teacher.network.scale,
        )  # fmt: skip
        on_student, on_teacher = self.forward_both(images)
        with without_autocast(batch.images):
            each = soft_cross_entropy(on_student.logits.float(), on_teacher.logits.float(), self.temperature)
            return (share * each).sum()

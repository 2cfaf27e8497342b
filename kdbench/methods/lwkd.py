"""LW-KD, a re-implementation: Liu, Zhang & Wang, "Learning from a Lightweight Teacher for Efficient Knowledge
Distillation", 2020 (arXiv 2005.09163).

    L_S = (1 - alpha) CE(z_s, y) + alpha T^2 KL( p_t^T || p_s^T ) + beta L_adv,   L_adv = - log D(p_s^T)
    L_D = - log D(p_t^T) - log(1 - D(p_s^T))

The teacher is a LeNet-5 trained on a synthetic data set with as many classes as the student's; a sample of label y is
taught by what the teacher says of a synthetic image of class y. That much is in the paper's abstract: synthetic data
with an adjustable number of classes, a lightweight teacher, soft targets, and a KD loss with an adversarial one. Its
text and code were not at hand, so the rest is our reading, each part a key: composites of handwritten digits
(`dataset=synmnist`), a new image for each sample and step, a discriminator of two hidden layers on outputs softened by
the same T, one step of each player, the student first. T = 5 and alpha = 0.7 are those of other code by the first
author, whose KL is a mean over classes too (`reduction: mean`); it stands at the field's convention by default.

`game: minimax` is log(1 - D(p_s)) for the student. `conditional` shows the label to the discriminator, which else sees
only how outputs are distributed. Class y has nothing in common with the image that teaches it, so what there is to gain
is regularisation: compare with `tfkd_reg`, `ls`, and another class map (`method.synthetic.map_seed=1`).
The student never waits for a teacher: its answers to all synthetic images are computed once.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data import sources
from kdbench.data.batch import Batch
from kdbench.methods.kd import kd_loss
from kdbench.methods.lwkd_teacher import NAME
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.machinery.several_optimizers import SeveralOptimizers, Update
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features, Shapes
from kdbench.models.trained import trained_network
from kdbench.specs.spec import FinishedRun

_CHUNK = 1000  # synthetic images that the lightweight teacher answers at a time


class Bank(nn.Module):
    """A teacher's answers, by class.

    Args:
        logits: (N,K).
        labels: (N,), every class at least once.
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        super().__init__()
        counts = torch.bincount(labels, minlength=logits.shape[1])
        for name, tensor in {
            "logits": logits[labels.argsort(stable=True)],
            "counts": counts,
            "starts": counts.cumsum(0) - counts,
        }.items():
            self.register_buffer(name, tensor, persistent=False)
        self.logits: Tensor
        self.counts: Tensor
        self.starts: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, targets: str, correct_only: bool) -> Self:
        """A bank of the chosen answers.

        Args:
            logits: (N,K).
            labels: (N,).
            targets: `instance` keeps each answer, `class_mean` the mean of each class.
            correct_only: keep right answers only; of a class without one all.
        """
        if correct_only:
            right = logits.argmax(1) == labels
            known = torch.bincount(labels[right], minlength=logits.shape[1]) > 0
            kept = right | ~known[labels]
            logits, labels = logits[kept], labels[kept]
        if targets == "class_mean":
            classes = labels.unique()
            logits, labels = torch.stack([logits[labels == c].mean(0) for c in classes]), classes
        return cls(logits, labels)

    def draw(self, labels: Tensor, index: Tensor, pairing: str) -> Tensor:
        """An answer (B,K) of the right class for each sample.

        Args:
            labels: (B,).
            index: (B,), of the samples in the data set.
            pairing: `resampled` anew, or `fixed` for each index.
        """
        counts = self.counts[labels]
        if pairing == "fixed":
            # Knuth's multiplicative hash, whose high bits spread indices that go round with the labels
            place = index * 2654435761 % 2**32 * counts // 2**32
        else:
            place = (torch.rand(labels.shape, dtype=torch.float64, device=labels.device) * counts).long()
        return self.logits[self.starts[labels] + place]


class Discriminator(nn.Module):
    """Scores of outputs, high for the teacher's: probabilities (B,K), labels (B,) -> (B,).

    Args:
        num_classes: K.
        conditional: let it see the labels.
    """

    def __init__(self, num_classes: int, conditional: bool) -> None:
        super().__init__()
        self.num_classes, self.conditional = num_classes, conditional
        self.layers = nn.Sequential(
            nn.Linear(num_classes * (2 if conditional else 1), 128), nn.LeakyReLU(0.2),
            nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1),
        )  # fmt: skip

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """As the class says."""
        if self.conditional:
            told = torch.zeros_like(probabilities).scatter(1, labels[:, None], 1.0)
            probabilities = torch.cat([probabilities, told], dim=1)
        return self.layers(probabilities).squeeze(1)


def generator_loss(fake: Tensor, game: str) -> Tensor:
    """What the student minimises of the scores (B,) of its outputs: - log D, or log(1 - D) for `minimax`."""
    return -F.softplus(fake).mean() if game == "minimax" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """- log D(real) - log(1 - D(fake)) of scores (B,), means over the batch."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


class LWKD(SeveralOptimizers, MethodWithoutTeacher):
    """Soft targets from a small network that knows digits, and a game against a discriminator."""

    bank: Bank

    def __init__(
        self,
        temperature: float,
        alpha: float,
        beta: float,
        reduction: str,
        game: str,
        conditional: bool,
        discriminator: Mapping[str, float],
        pairing: str,
        targets: str,
        correct_only: bool,
        synthetic: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.reduction = temperature, alpha, beta, reduction
        self.game, self.conditional, self.discriminator_lr = game, conditional, discriminator["lr"]
        self.pairing, self.targets, self.correct_only = pairing, targets, correct_only
        self.label_weight = 1 - alpha

    def prepare(self, student: Shapes) -> None:
        """Make the discriminator, and a bank of zeros until `receive` brings the real one."""
        classes = student.num_classes
        self.bank = Bank(torch.zeros(classes, classes), torch.arange(classes))
        self.discriminator = Discriminator(classes, self.conditional)

    def receive(self, finished: Mapping[str, FinishedRun]) -> None:
        """Fill the bank with what the lightweight teacher says of its training images, not augmented."""
        teacher = finished[NAME]
        network = trained_network(teacher.record).eval()
        train, _ = sources.load(teacher.spec.config["dataset"], teacher.spec.sizes)
        answers = []
        with torch.no_grad():
            for start in range(0, len(train.labels), _CHUNK):
                images = torch.from_numpy(train.images[start : start + _CHUNK].copy()).permute(0, 3, 1, 2)
                answers.append(network(images.float() / 255).logits)
        labels = torch.from_numpy(train.labels.copy())
        self.bank = Bank.of(torch.cat(answers), labels, self.targets, self.correct_only)

    def updates(self) -> list[Update]:
        """The student's, then the discriminator's."""
        changed = {"optimizer": "adamw", "lr": self.discriminator_lr, "weight_decay": 0.0}
        game = {**self.stage.recipe, **changed, "schedule": "constant", "warmup_epochs": 0}
        return [
            Update(self.parameters_without(self.discriminator), self.stage.recipe, self.student_losses),
            Update(self.discriminator.parameters(), game, self.discriminator_losses),
        ]

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """`kd` and `adversarial`."""
        logits, target = student.logits, self.bank.draw(batch.labels, batch.index, self.pairing)
        self.fake, self.real = ((z / self.temperature).softmax(1) for z in (logits, target))
        weight = self.alpha / (logits.shape[1] if self.reduction == "mean" else 1)
        return {
            "kd": weight * kd_loss(logits, target, self.temperature),
            "adversarial": self.beta * generator_loss(self.discriminator(self.fake, batch.labels), self.game),
        }

    def student_losses(self, batch: Batch) -> dict[str, Tensor]:
        """What the student minimises."""
        return self.named_losses(*self.forward_both(batch.images), batch)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`discriminator`: its loss on the outputs that the student has just given."""
        with without_autocast(batch.images):
            real, fake = (self.discriminator(seen.detach(), batch.labels) for seen in (self.real, self.fake))
            right = torch.cat([real > 0, fake <= 0]).float().mean()
            self.watched = {"discriminator_accuracy": right}
            return {"discriminator": discriminator_loss(real, fake)}

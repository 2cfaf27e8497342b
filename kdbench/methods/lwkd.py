"""LW-KD, a re-implementation: Liu, Zhang & Wang, "Learning from a Lightweight Teacher for Efficient Knowledge
Distillation", 2020 (arXiv 2005.09163).

    L_S = (1 - alpha) CE(z_s, y) + alpha T^2 KL( p_t^T || p_s^T ) + beta L_adv,   L_adv = - log D(p_s^T)
    L_D = - log D(p_t^T) - log(1 - D(p_s^T))

The teacher is a LeNet-5 trained on a synthetic data set with as many classes as the student's data; the soft target of
a sample with label y is the teacher's output for a synthetic image of class y. This much is in the abstract of the
paper: synthetic data with an adjustable number of classes, a lightweight teacher, soft targets, and a KD loss with an
adversarial one. Its text and its code were not available, so the rest is our interpretation, with options for most of
it: composites of handwritten digits (`dataset=synmnist`), a new image for each sample and step, a discriminator with
two hidden layers on outputs softened by the same T, and one step of each player, the student first. The values T = 5
and alpha = 0.7 are from other code by the first author, where the KL is also a mean over classes (`reduction: mean`);
the default here is the usual sum over classes.

With `game: minimax` the student minimises log(1 - D(p_s)). With `conditional` the discriminator sees the label, too;
otherwise it sees only the distribution of the outputs. Class y has nothing in common with the synthetic image whose
output is its target, so all there is to gain is regularisation: compare with `tfkd_reg`, `ls`, and another class map
(`method.synthetic.map_seed=1`).
The teacher adds no forward passes to the training: its outputs for all synthetic images are computed once.
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

_CHUNK = 1000  # synthetic images in one forward pass of the lightweight teacher


class Bank(nn.Module):
    """Outputs of a teacher, sorted by class.

    Args:
        logits: (N,K).
        labels: (N,), each class at least once.
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
        """A bank of selected outputs.

        Args:
            logits: (N,K).
            labels: (N,).
            targets: `instance` keeps all outputs, `class_mean` only the mean of each class.
            correct_only: keep only correct outputs; of a class without any, all.
        """
        if correct_only:
            correct = logits.argmax(1) == labels
            has_correct = torch.bincount(labels[correct], minlength=logits.shape[1]) > 0
            kept = correct | ~has_correct[labels]
            logits, labels = logits[kept], labels[kept]
        if targets == "class_mean":
            classes = labels.unique()
            logits, labels = torch.stack([logits[labels == c].mean(0) for c in classes]), classes
        return cls(logits, labels)

    def draw(self, labels: Tensor, index: Tensor, pairing: str) -> Tensor:
        """An output of the same class for each sample, (B,K).

        Args:
            labels: (B,).
            index: (B,), of the samples in the data set.
            pairing: `resampled` draws at random, `fixed` always gives the same output for an index.
        """
        counts = self.counts[labels]
        if pairing == "fixed":
            # Knuth's multiplicative hash: its high bits are spread evenly even if the labels repeat with the index.
            position = index * 2654435761 % 2**32 * counts // 2**32
        else:
            position = (torch.rand(labels.shape, dtype=torch.float64, device=labels.device) * counts).long()
        return self.logits[self.starts[labels] + position]


class Discriminator(nn.Module):
    """Scores outputs, the teacher's high: probabilities (B,K), labels (B,) -> (B,).

    Args:
        num_classes: K.
        conditional: whether it sees the labels.
    """

    def __init__(self, num_classes: int, conditional: bool) -> None:
        super().__init__()
        self.num_classes, self.conditional = num_classes, conditional
        self.layers = nn.Sequential(
            nn.Linear(num_classes * (2 if conditional else 1), 128), nn.LeakyReLU(0.2),
            nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1),
        )  # fmt: skip

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,)."""
        inputs = probabilities
        if self.conditional:
            one_hot = torch.zeros_like(probabilities).scatter(1, labels[:, None], 1.0)
            inputs = torch.cat([probabilities, one_hot], dim=1)
        return self.layers(inputs).squeeze(1)


def generator_loss(fake: Tensor, game: str) -> Tensor:
    """The student's loss from the scores (B,) of its outputs: the mean of - log D, or of log(1 - D) for `minimax`."""
    return -F.softplus(fake).mean() if game == "minimax" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """- log D(real) - log(1 - D(fake)), means over the batch, from the scores (B,)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


class LWKD(SeveralOptimizers, MethodWithoutTeacher):
    """Soft targets from a small network trained on digits, and an adversarial game with a discriminator."""

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
        """Create the discriminator, and a bank of zeros until `receive` brings the real one."""
        classes = student.num_classes
        self.bank = Bank(torch.zeros(classes, classes), torch.arange(classes))
        self.discriminator = Discriminator(classes, self.conditional)

    def receive(self, finished: Mapping[str, FinishedRun]) -> None:
        """Fill the bank with the lightweight teacher's outputs for its training images, without augmentation."""
        teacher = finished[NAME]
        network = trained_network(teacher.record).eval()
        train, _ = sources.load(teacher.spec.config["dataset"], teacher.spec.sizes)
        outputs = []
        with torch.no_grad():
            for start in range(0, len(train.labels), _CHUNK):
                images = torch.from_numpy(train.images[start : start + _CHUNK].copy()).permute(0, 3, 1, 2)
                outputs.append(network(images.float() / 255).logits)
        labels = torch.from_numpy(train.labels.copy())
        self.bank = Bank.of(torch.cat(outputs), labels, self.targets, self.correct_only)

    def updates(self) -> list[Update]:
        """The student's update, then the discriminator's."""
        changes = {"optimizer": "adamw", "lr": self.discriminator_lr, "weight_decay": 0.0, "betas": None}
        recipe = {**self.stage.recipe, **changes, "schedule": "constant", "warmup_epochs": 0}
        return [
            Update(self.parameters_without(self.discriminator), self.stage.recipe, self.student_losses),
            Update(self.discriminator.parameters(), recipe, self.discriminator_losses),
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
        """All losses of the student."""
        return self.named_losses(*self.forward_both(batch), batch)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`discriminator`, its loss on the outputs of the same batch that the student was updated with."""
        with without_autocast(batch.images):
            real, fake = (self.discriminator(p.detach(), batch.labels) for p in (self.real, self.fake))
            accuracy = torch.cat([real > 0, fake <= 0]).float().mean()
            self.watched = {"discriminator_accuracy": accuracy}
            return {"discriminator": discriminator_loss(real, fake)}

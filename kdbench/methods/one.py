"""ONE: Lan, Zhu & Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018 (arXiv 1806.04606).

    L = sum_i CE(z_i, y) + CE(z_e, y) + w(e) T^2 sum_i KL( p_e || p_i ),   z_e = sum_i g_i z_i,   T = 3

M = 3 branches share stem and stages but the last; each has its own last stage and classifier. The gate g takes the
shared map: average pooling, linear, batch norm, ReLU, softmax. No gradient of the KL reaches the ensemble.

w(e) = exp( -5 (1 - min(e, R) / R)^2 ) with R = 80 of 300 epochs is in the authors' code and not in the paper's loss,
whose weight is 1: `ramp: 0`. Branch 0 is the student: it alone is exported, its cost alone is the cost of inference
and its accuracy the headline; the other branches and the ensemble are recorded beside it. The authors of "Knowledge
Distillation Beyond Model Compression" report the best branch by test accuracy, train 300 epochs, and let the branches
of a wide ResNet share the batch norm after the last stage: `last_norm: shared`; by default each has its own.
A loss added by `plus` is that of branch 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models._base import StagedNetwork
from kdbench.models.features import Features, Shapes


class Gate(nn.Module):
    """How much each branch counts: maps (B,C,H,W) -> (B,M), rows that sum to 1. Batch norm needs B > 1."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, maps: Tensor) -> Tensor:
        """As the class says; the ReLU before the softmax keeps any branch from being shut off."""
        return F.relu(self.norm(self.fc(maps.mean((2, 3))))).softmax(1)


def ensemble(branches: Sequence[Tensor], gate: Tensor) -> Tensor:
    """z_e (B,K) of M logits (B,K) and a gate (B,M)."""
    return (torch.stack(list(branches), dim=1) * gate[..., None]).sum(1)


def consistency(branches: Sequence[Tensor], ensemble: Tensor, temperature: float) -> Tensor:
    """T^2 sum_i KL( p_e || p_i ) of logits (B,K), the ensemble's being constants; mean over the batch, a scalar."""
    target = ensemble.detach()
    return torch.stack([kd_loss(logits, target, temperature) for logits in branches]).sum()


def ramp(epoch: int, length: float) -> float:
    """w(e): from 0.0067 to 1 over so many epochs; 1 where `length` is 0. `epoch` is counted from 0."""
    return math.exp(-5 * (1 - min(epoch / length, 1)) ** 2) if length else 1.0


class ONE(MethodWithoutTeacher):
    """Branches of one network that learn from their gated ensemble."""

    per_sample = False  # the gate has a batch norm

    def __init__(self, branches: int, temperature: float, ramp: float, last_norm: str) -> None:
        super().__init__()
        self.count, self.temperature, self.ramp, self.shared = branches, temperature, ramp, last_norm == "shared"

    def prepare(self, student: Shapes) -> None:
        """Make the other branches and the gate.

        Raises:
            UserError: the student cannot be split, or has no norm to share.
        """
        own = self.student.net
        if not isinstance(own, StagedNetwork) or not own.stem_names:
            raise UserError(
                f"one splits the student before its last stage, which is known for the CIFAR networks of the families "
                f"ResNet, WRN, VGG and LeNet, not for {type(own).__name__}"
            )
        norm = own.final_norm
        if self.shared and not norm:
            raise UserError("method.last_norm=shared needs a norm after the last stage, which wide ResNets alone have")
        self.branches = nn.ModuleList()
        for number in range(1, self.count):
            branch = self.another_network(None, number).net
            branch.become_branch()
            if self.shared and norm:
                setattr(branch, norm, getattr(own, norm))
            self.branches.append(branch)
        self.gate = Gate(student.stages[-2][0], self.count)

    def split(self, student: Features) -> tuple[list[Tensor], Tensor]:
        """Logits (B,K) of all branches and the shared map, from the features of the first."""
        shared = student.stages[-2]
        others = [branch.forward_branch(shared) for branch in self.branches]  # type: ignore[operator]
        return [student.logits, *others], shared

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` of branch 0, `branches_ce` of the others, `ensemble_ce` and `one`."""
        student, teacher = self.forward_both(batch.images)
        logits, shared = self.split(student)
        losses = self.named_losses(student, teacher, batch)
        with without_autocast(batch.images):
            logits = [each.float() for each in logits]
            together = ensemble(logits, self.gate(shared.float()))
            others = [F.cross_entropy(each, batch.labels) for each in logits[1:]]
            losses["branches_ce"] = torch.stack(others).sum()
            losses["ensemble_ce"] = F.cross_entropy(together, batch.labels)
            weight = ramp(self.progress.epoch, self.ramp * self.progress.epochs)
            losses["one"] = weight * consistency(logits, together, self.temperature)
        return losses

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """None of branch 0 alone."""
        return {}

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Branch 0 as the student, the other branches and the gated ensemble."""
        logits, shared = self.split(self.student(images))
        names = ["student", *(f"branch{number}" for number in range(1, self.count))]
        found = dict(zip(names, logits, strict=True))
        with without_autocast(images):
            together = ensemble([each.float() for each in logits], self.gate(shared.float()))
        return {**found, "ensemble": together}

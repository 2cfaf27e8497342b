"""ONE: Lan, Zhu & Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018 (arXiv 1806.04606).

    L = sum_i CE(z_i, y) + CE(z_e, y) + w(e) T^2 sum_i KL( p_e || p_i ),   z_e = sum_i g_i z_i,   T = 3

M = 3 branches share the stem and all stages but the last; each has its own last stage and classifier. The gate g acts
on the shared map: average pooling, linear layer, batch norm, ReLU, softmax. No gradient of the KL reaches the ensemble.

w(e) = exp( -5 (1 - min(e, R) / R)^2 ) with R = 80 of 300 epochs is in the authors' code. In the loss of the paper the
weight is 1: `ramp: 0`. Branch 0 is the student: only this branch is exported, the cost of inference is its cost, and
its accuracy is the headline; the other branches and the ensemble are recorded beside it. The authors of "Knowledge
Distillation Beyond Model Compression" report the branch with the best test accuracy, train for 300 epochs, and let the
branches of a wide ResNet share the batch norm after the last stage (`last_norm: shared`); by default each has its own.
A loss added by `plus` applies to branch 0 alone.
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
    """Weights of the branches: maps (B,C,H,W) -> (B,M), rows that sum to 1. Its batch norm needs B > 1 in training."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, maps: Tensor) -> Tensor:
        """Weights (B,M); the ReLU before the softmax keeps every branch from being switched off."""
        return F.relu(self.norm(self.fc(maps.mean((2, 3))))).softmax(1)


def ensemble(branches: Sequence[Tensor], gate: Tensor) -> Tensor:
    """z_e (B,K), from the logits (B,K) of M branches and the weights (B,M) of the gate."""
    return (torch.stack(list(branches), dim=1) * gate[..., None]).sum(1)


def consistency(branches: Sequence[Tensor], ensemble: Tensor, temperature: float) -> Tensor:
    """T^2 sum_i KL( p_e || p_i ), a scalar, mean over the batch, from logits (B,K), those of the ensemble constants."""
    target = ensemble.detach()
    return torch.stack([kd_loss(logits, target, temperature) for logits in branches]).sum()


def ramp(epoch: int, length: float) -> float:
    """w(e), which rises from 0.0067 to 1.

    Args:
        epoch: counted from 0.
        length: number of epochs in which it rises; with 0, w is always 1.
    """
    return math.exp(-5 * (1 - min(epoch / length, 1)) ** 2) if length else 1.0


class ONE(MethodWithoutTeacher):
    """Branches of one network learn from their gated ensemble."""

    per_sample = False  # the gate has a batch norm
    mixed_labels = True

    def __init__(self, branches: int, temperature: float, ramp: float, last_norm: str) -> None:
        super().__init__()
        self.count, self.temperature, self.ramp, self.shared = branches, temperature, ramp, last_norm == "shared"

    def prepare(self, student: Shapes) -> None:
        """Create the other branches and the gate.

        Raises:
            UserError: the student cannot be split, or has no norm to share.
        """
        network = self.student.net
        if not isinstance(network, StagedNetwork) or not network.stem_names:
            raise UserError(
                f"one splits the student before its last stage, which is possible for CIFAR networks of the families "
                f"ResNet, WRN, VGG and LeNet, not for {type(network).__name__}"
            )
        norm = network.final_norm
        if self.shared and not norm:
            raise UserError("method.last_norm=shared needs a norm after the last stage, which only wide ResNets have")
        self.branches = nn.ModuleList()
        for number in range(1, self.count):
            branch = self.another_network(None, number).net
            branch.become_branch()
            if self.shared and norm:
                setattr(branch, norm, getattr(network, norm))
            self.branches.append(branch)
        self.gate = Gate(student.stages[-2][0], self.count)

    def split(self, student: Features) -> tuple[list[Tensor], Tensor]:
        """Logits (B,K) of all branches, and the shared map, from the features of branch 0."""
        shared = student.stages[-2]
        others = [branch.forward_branch(shared) for branch in self.branches]  # type: ignore[operator]
        return [student.logits, *others], shared

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`ce` of branch 0, `branches_ce` of the others, `ensemble_ce` and `one`."""
        student, teacher = self.forward_both(batch)
        logits, shared = self.split(student)
        losses = self.named_losses(student, teacher, batch)
        with without_autocast(batch.images):
            logits = [branch.float() for branch in logits]
            ensemble_logits = ensemble(logits, self.gate(shared.float()))
            branch_losses = [self.label_loss(branch, batch) for branch in logits[1:]]
            losses["branches_ce"] = torch.stack(branch_losses).sum()
            losses["ensemble_ce"] = self.label_loss(ensemble_logits, batch)
            weight = ramp(self.progress.epoch, self.ramp * self.progress.epochs)
            losses["one"] = weight * consistency(logits, ensemble_logits, self.temperature)
        return losses

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """None: all losses of this method need the other branches."""
        return {}

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Branch 0 as the student, the other branches and the gated ensemble."""
        logits, shared = self.split(self.student(images))
        names = ["student", *(f"branch{number}" for number in range(1, self.count))]
        with without_autocast(images):
            ensemble_logits = ensemble([branch.float() for branch in logits], self.gate(shared.float()))
        return {**dict(zip(names, logits, strict=True)), "ensemble": ensemble_logits}

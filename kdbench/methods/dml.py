"""Deep mutual learning: Zhang, Xiang, Hospedales & Lu, CVPR 2018 (arXiv 1706.00384).

    L_k = CE(z_k, y) + 1 / (K - 1) * sum_{l != k} KL( p_l || p_k ),   T = 1, p_l a constant

for K networks that learn at the same time, without a teacher; each is initialised from a random stream of its own and
updated by its own loss alone. The headline is peer 0, the student, fixed beforehand; the other peers, their mean, the
best (chosen on the test set, and so marked) and the ensemble (mean probabilities) are recorded beside it.

`updates: simultaneous` (default; all PyTorch re-implementations): all predictions are made before any update.
`alternating` is the paper's algorithm 1: peer k sees what the peers before it predict after their update; these extra
forward passes, in training mode, also update their batch statistics. The authors' code sums over peers without
1 / (K - 1), which is the same for two. The authors of "Knowledge Distillation Beyond Model Compression" later use T = 4
and weights 0.1 and 0.9 for labels and peers: `temperature=4 label_weight=0.1 weight=0.9` (T^2 is applied).
A loss added by `plus` is the student's alone.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.machinery.several_optimizers import SeveralOptimizers, Update
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features, Shapes


def mutual_loss(logits: Sequence[Tensor], k: int, temperature: float) -> Tensor:
    """T^2 KL of peer k's prediction from every other's, which are constants; mean over batch and others; a scalar.

    Args:
        logits: (B,K) of each peer.
        k: the peer that learns.
        temperature: T > 0.
    """
    others = [other.detach() for number, other in enumerate(logits) if number != k]
    return torch.stack([kd_loss(logits[k], other, temperature) for other in others]).mean()


class DML(SeveralOptimizers, MethodWithoutTeacher):
    """Networks that learn from each other; the student is the first of them."""

    def __init__(
        self, peers: Sequence[str], temperature: float, weight: float, label_weight: float, updates: str
    ) -> None:
        super().__init__()
        self.names, self.temperature, self.weight = peers, temperature, weight
        self.label_weight, self.alternating = label_weight, updates == "alternating"

    def prepare(self, student: Shapes) -> None:
        """Make the other peers.

        Raises:
            UserError: there is none, or no such network.
        """
        if not self.names:
            raise UserError("method.peers=[] is not allowed: dml needs one other network at least")
        self.peers = nn.ModuleList(
            self.another_network(name, number) for number, name in enumerate(self.names, start=1)
        )

    def updates(self) -> list[Update]:
        """One for each peer, the student first."""
        parameters = [self.parameters_without(self.peers), *(peer.parameters() for peer in self.peers)]
        return [Update(own, self.stage.recipe, partial(self.peer_losses, k)) for k, own in enumerate(parameters)]

    def peer_losses(self, k: int, batch: Batch) -> dict[str, Tensor]:
        """The losses of peer k; to be called for 0, 1, 2 ... in this order."""
        if k == 0:
            student, teacher = self.forward_both(batch.images)
            self.predicted = [student.logits, *(peer(batch.images).logits for peer in self.peers)]
            losses = self.named_losses(student, teacher, batch)  # with what is added to the method
        else:
            if self.alternating:
                self._predict_again(k - 1, batch)
            with without_autocast(batch.images):
                own = self.predicted[k].float()
                losses = {f"peer{k}_ce": self.label_weight * F.cross_entropy(own, batch.labels)}
        with without_autocast(batch.images):
            logits = [logits.float() for logits in self.predicted]
            losses["dml" if k == 0 else f"peer{k}_dml"] = self.weight * mutual_loss(logits, k, self.temperature)
        return losses

    def _predict_again(self, k: int, batch: Batch) -> None:
        network = self.student if k == 0 else self.peers[k - 1]
        with torch.no_grad():
            self.predicted[k] = network(batch.images).logits

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """None that need one network alone."""
        return {}

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """The student, each other peer, and the mean of their probabilities, in logarithms."""
        found = {"student": self(images)}
        found |= {f"peer{k}": peer(images).logits for k, peer in enumerate(self.peers, start=1)}
        each = torch.stack([logits.float().log_softmax(1) for logits in found.values()])
        return {**found, "ensemble": each.logsumexp(0) - math.log(len(found))}

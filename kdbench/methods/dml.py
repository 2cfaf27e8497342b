"""Deep mutual learning: Zhang, Xiang, Hospedales & Lu, CVPR 2018 (arXiv 1706.00384).

    L_k = CE(z_k, y) + 1 / (K - 1) * sum_{l != k} KL( p_l || p_k ),   T = 1, p_l a constant

for K networks that are trained at the same time, without a teacher; each is initialised from a random stream of its own
and updated by its own loss alone. The headline is peer 0, the student, chosen in advance; the other peers, their mean,
the best (chosen on the test set, and marked as such) and the ensemble (mean probabilities) are recorded beside it.

`updates: simultaneous` (default; all PyTorch re-implementations): all predictions are made before any update.
`alternating` is algorithm 1 of the paper: peer k learns from what the peers before it predict after their updates;
these extra forward passes, in train mode, also update their batch statistics. The authors' code sums over the peers
without 1 / (K - 1), which makes no difference for two. The authors of "Knowledge Distillation Beyond Model Compression"
use T = 4 and weights of 0.1 for the labels and 0.9 for the peers: `temperature=4 label_weight=0.1 weight=0.9` (T^2 is
applied). A loss added by `plus` applies to the student alone.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.machinery.several_optimizers import SeveralOptimizers, Update
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features, Shapes


def mutual_loss(logits: Sequence[Tensor], k: int, temperature: float) -> Tensor:
    """T^2 KL(p_l || p_k), mean over the batch and over the other peers l, whose predictions are constants.

    Args:
        logits: (B,K) of each peer.
        k: the peer that learns.
        temperature: T > 0.

    Returns:
        Scalar.
    """
    others = [peer.detach() for number, peer in enumerate(logits) if number != k]
    return torch.stack([kd_loss(logits[k], other, temperature) for other in others]).mean()


class DML(SeveralOptimizers, MethodWithoutTeacher):
    """Networks learn from each other; the student is the first of them."""

    mixed_labels = True

    def __init__(
        self, peers: Sequence[str], temperature: float, weight: float, label_weight: float, updates: str
    ) -> None:
        super().__init__()
        self.peer_names, self.temperature, self.weight = peers, temperature, weight
        self.label_weight, self.alternating = label_weight, updates == "alternating"

    def prepare(self, student: Shapes) -> None:
        """Create the other peers.

        Raises:
            UserError: the list is empty, or there is no such network.
        """
        if not self.peer_names:
            raise UserError("method.peers=[] is not allowed: dml needs at least one other network")
        self.peers = nn.ModuleList(
            self.another_network(name, number) for number, name in enumerate(self.peer_names, start=1)
        )

    def updates(self) -> list[Update]:
        """One update for each peer, the student first."""
        peers = [self.parameters_without(self.peers), *(peer.parameters() for peer in self.peers)]
        return [
            Update(parameters, self.stage.recipe, partial(self.peer_losses, k)) for k, parameters in enumerate(peers)
        ]

    def peer_losses(self, k: int, batch: Batch) -> dict[str, Tensor]:
        """The losses of peer k; to be called for k = 0, 1, 2 ... in this order."""
        if k == 0:
            student, teacher = self.forward_both(batch)
            self.predicted = [student.logits, *(peer(batch.images).logits for peer in self.peers)]
            losses = self.named_losses(student, teacher, batch)  # includes those of `plus`
        else:
            if self.alternating:
                self._predict_again(k - 1, batch)
            with without_autocast(batch.images):
                cross_entropy = self.label_loss(self.predicted[k].float(), batch)
                losses = {f"peer{k}_ce": self.label_weight * cross_entropy}
        with without_autocast(batch.images):
            logits = [predicted.float() for predicted in self.predicted]
            losses["dml" if k == 0 else f"peer{k}_dml"] = self.weight * mutual_loss(logits, k, self.temperature)
        return losses

    def _predict_again(self, k: int, batch: Batch) -> None:
        network = self.student if k == 0 else self.peers[k - 1]
        with torch.no_grad():
            self.predicted[k] = network(batch.images).logits

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """None: all losses of this method need the other peers."""
        return {}

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """The student, the other peers, and as `ensemble` the logarithm of their mean probabilities."""
        logits = {"student": self(images)}
        logits |= {f"peer{k}": peer(images).logits for k, peer in enumerate(self.peers, start=1)}
        log_probabilities = torch.stack([peer.float().log_softmax(1) for peer in logits.values()])
        return {**logits, "ensemble": log_probabilities.logsumexp(0) - math.log(len(logits))}

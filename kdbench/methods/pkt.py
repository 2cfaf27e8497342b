"""PKT: Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
(arXiv 1803.10837).

    L = CE(z_s, y) + weight / B^2 * sum_ij p^t_j|i log( p^t_j|i / p^s_j|i )
    p_j|i = K_ij / sum_k K_ik,   K_ij = (cos(e_i, e_j) + 1) / 2

where e are the embeddings, the inputs of the classifiers: how probable it is that sample i picks sample j as its
neighbour.

As in the authors' code, RepDistiller and mdistiller, the pairs of a sample with itself are counted, the divergence is a
mean over all B^2 pairs, and 1e-7 is added to both probabilities in the logarithm, as the kernel of opposite embeddings
is 0. The default weight of 30000 is that of the latter two. As each row of p sums to 1, the effective weight falls with
the batch size; it was chosen for batches of 64. An embedding of length 0 has no direction: its cosines are 0.
"""

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features

_EPS = 1e-7  # beside the probabilities in the logarithm


def _probabilities(embedding: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    directions = embedding / torch.where(norms > 0, norms, 1.0)
    kernel = (directions @ directions.T + 1).clamp(min=0) / 2  # rounding makes it negative for opposite samples
    return kernel / kernel.sum(1, keepdim=True)  # that of a sample with itself is at least 1/2


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of p^t log(p^t / p^s) over all pairs, a scalar, of embeddings (B,D) and (B,D'), the latter constants."""
    q, p = _probabilities(student), _probabilities(teacher)
    return (p * ((p + _EPS).log() - (q + _EPS).log())).mean()


class PKT(Method):
    """The student keeps the probabilities with which the teacher's embeddings pick each other as neighbours."""

    per_sample = False
    mixed_labels = True
    reads = ("embedding",)

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`pkt`, the divergence."""
        return {"pkt": self.weight * pkt_loss(student.embedding, teacher.embedding)}

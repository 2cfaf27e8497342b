"""DIST: Huang, You, Wang, Qian & Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536).

    L = CE(z_s, y) + beta T^2 ( 1 - 1/B sum_i r(p_i, q_i) ) + gamma T^2 ( 1 - 1/K sum_k r(p_.k, q_.k) )

with the softened probabilities p = softmax(z_s / T) and q = softmax(z_t / T), (B,K), and Pearson's correlation r: the
first term compares the classes within each sample, the second the samples of the batch within each class. A
correlation does not change when its arguments are shifted and scaled, so the student need not match the probabilities
of a much stronger teacher. The second term depends on the size of the batch.

T = 4 and beta = gamma = 2 are the values of the authors' configuration for CIFAR: both 1 there, times 2. As in their
code, 1e-8 is added to the product of the norms in r. Our addition: a row that is constant up to rounding, such as a
class whose probability has underflowed, has the correlation 0 and no gradient. With two classes, the first term only
says in how many samples both networks prefer the same class, and the second teaches alone.
"""

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features


def _centred(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    constant = centred.abs().amax(1, keepdim=True) <= 1e-6 * rows.amax(1, keepdim=True)
    return centred.masked_fill(constant, 0.0)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two tensors of probabilities (N,M): (N,), 0 for rows that are constant."""
    first, second = _centred(first), _centred(second)
    norms = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(1) / (norms + 1e-8)


def dist_terms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The term between the classes and that within each class, both between 0 and 2 T^2.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        temperature: T > 0.

    Returns:
        Two scalars: T^2 (1 - mean over the samples) and T^2 (1 - mean over the classes) of the correlations.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    inter, intra = (1 - correlation(*pair).mean() for pair in ((p, q), (p.T, q.T)))
    return temperature**2 * inter, temperature**2 * intra


class DIST(Method):
    """The student's probabilities correlate with the teacher's, within each sample and within each class."""

    per_sample = False
    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, inter_weight: float, intra_weight: float) -> None:
        super().__init__()
        self.temperature, self.inter_weight, self.intra_weight = temperature, inter_weight, intra_weight

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`inter`, between the classes of each sample, and `intra`, between the samples in each class."""
        inter, intra = dist_terms(student.logits, teacher.logits, self.temperature)
        return {"inter": self.inter_weight * inter, "intra": self.intra_weight * intra}

"""Relational KD: Park, Kim, Lu & Cho, "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068).

    L = CE(z_s, y) + lambda_D L_D + lambda_A L_A
    L_D = mean_ij  h(psi_ij^s, psi_ij^t),     psi_ij = ||e_i - e_j|| / mu
    L_A = mean_ijk h(psi_ijk^s, psi_ijk^t),   psi_ijk = cos angle(e_i - e_j, e_k - e_j)

where e are the embeddings, the inputs of the classifiers, h is the Huber loss with delta 1, and mu is the mean of the
non-zero distances in a batch, for each network its own. The gradient flows through the student's mu, too, as in the
authors' code.

Means are over all B^2 and B^3 entries, including those with equal indices (0 for both networks), as in the authors'
code, RepDistiller and mdistiller; the default weights of 25 and 50 are those of the latter two. `normalize` first
divides the embeddings by their norm, as the authors of "Knowledge Distillation Beyond Model Compression" and mmrazor
do; they also count the diagonal in mu, which is not reproduced here. Differences of length zero (equal samples) have no
direction: their cosines are 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features


def _distances(embedding: Tensor) -> Tensor:
    # Computed without a matrix product, so that equal samples are at distance exactly 0, where the gradient is 0.
    return torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")


def _relative_distances(embedding: Tensor) -> Tensor:
    distances = _distances(embedding)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines(embedding: Tensor) -> Tensor:
    distances = _distances(embedding)[..., None]
    directions = (embedding[None] - embedding[:, None]) / torch.where(distances > 0, distances, 1.0)
    return directions @ directions.mT


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_D, a scalar, of embeddings (B,D) and (B,D'), the latter constants."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """L_A, a scalar, of embeddings (B,D) and (B,D'), the latter constants. Memory: B^2 (B + D + D') numbers."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


class RKD(Method):
    """The student keeps the teacher's distances and angles between the samples of a batch."""

    per_sample = False
    mixed_labels = True
    reads = ("embedding",)

    def __init__(self, distance_weight: float, angle_weight: float, normalize: bool) -> None:
        super().__init__()
        self.weights = {"distance": distance_weight, "angle": angle_weight}
        self.normalize = normalize

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`distance` and `angle`, each unless its weight is 0."""
        embeddings = student.embedding, teacher.embedding
        if self.normalize:
            embeddings = F.normalize(student.embedding, dim=1), F.normalize(teacher.embedding, dim=1)
        functions = {"distance": distance_loss, "angle": angle_loss}
        return {name: weight * functions[name](*embeddings) for name, weight in self.weights.items() if weight}

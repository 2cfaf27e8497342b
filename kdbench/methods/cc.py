"""CC: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (arXiv 1904.01802).

Two losses go by this name. The default, `variant: reference`, is that of RepDistiller, whose source is an author of the
paper, and of all published tables:

    L = CE(z_s, y) + weight / (B - 1) * sum_i sum_d |a_i - b_i|_d |a_i+1 - b_i+1|_d
    a = W_s e_s + c_s,   b = W_t e_t + c_t

over the samples that are neighbours in the shuffled batch, where e are the embeddings, the inputs of the classifiers.
Both linear layers are trained with the student and then discarded. As that of the teacher is trained, too, the loss has
a minimum that asks nothing of the student: two layers that map everything to the same point.

`variant: kernel` compares all pairs, as the paper describes it, by the Gaussian kernel of the normalised embeddings,
expanded to the order P, without linear layers:

    L = CE(z_s, y) + weight / B^2 * ||k(e_s) - k(e_t)||_F^2,   k_ij = exp(-2 gamma) sum_p (2 gamma cos(e_i, e_j))^p / p!

It needs another weight; the text of the paper was not available, and that of other code is 100. The KD term that the
paper can add is `plus=[kd]`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def adjacent_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Products of the absolute differences of neighbours in the batch, a scalar.

    Args:
        student: (B,D).
        teacher: (B,D).

    Returns:
        Sum over D, mean over the B-1 pairs of neighbours; 0 for a single sample.
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


def _kernel(embedding: Tensor, gamma: float, order: int) -> Tensor:
    norms = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    directions = embedding / torch.where(norms > 0, norms, 1.0)
    cosines = directions @ directions.T
    powers = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)


def kernel_loss(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Mean squared difference of the kernels.

    Args:
        student: embeddings (B,D).
        teacher: embeddings (B,D'), constants.
        gamma: of the Gaussian kernel exp(-gamma ||a - b||^2), > 0.
        order: P, of its expansion.

    Returns:
        Scalar, mean over all B^2 pairs.
    """
    return F.mse_loss(_kernel(student, gamma, order), _kernel(teacher, gamma, order))


class CC(Method):
    """The student keeps how the samples of a batch are related in the teacher."""

    per_sample = False
    mixed_labels = True
    reads = ("embedding",)

    def __init__(self, weight: float, dim: int, variant: str, gamma: float, order: int) -> None:
        super().__init__()
        self.weight, self.dim, self.variant, self.gamma, self.order = weight, dim, variant, gamma, order

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Create the linear layers, unless the embeddings are compared by their kernels."""
        if self.variant == "reference":
            self.student_embed = nn.Linear(student.embedding, self.dim)
            self.teacher_embed = nn.Linear(teacher.embedding, self.dim)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`cc`, the incongruence."""
        if self.variant == "reference":
            loss = adjacent_loss(self.student_embed(student.embedding), self.teacher_embed(teacher.embedding))
        else:
            loss = kernel_loss(student.embedding, teacher.embedding, self.gamma, self.order)
        return {"cc": self.weight * loss}

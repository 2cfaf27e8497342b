"""How like its teacher a student is: in what it predicts, and in what it represents. All in float64."""

import torch
from torch import Tensor
from torch.nn import functional as F


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of samples with the same first choice (Stanton et al., NeurIPS 2021, arXiv 2106.05945); logits (N,K)."""
    return (student.argmax(1) == teacher.argmax(1)).double().mean().item()


def kl(student: Tensor, teacher: Tensor) -> float:
    """Mean KL(teacher || student) of the softmaxes at T = 1, in nats; logits (N,K)."""
    log_q, log_p = student.double().log_softmax(1), teacher.double().log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()


def cka(first: Tensor, second: Tensor) -> float | None:
    """Linear CKA of two embeddings of the same samples (Kornblith et al., ICML 2019, arXiv 1905.00414).

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of the centred embeddings, in feature space: no N x N matrix is
    made. 1 for embeddings that differ by rotation, reflection, isotropic scaling and shift; 0 for uncorrelated ones.
    It is biased upwards where N is not much larger than D1 and D2.

    Args:
        first: (N,D1).
        second: (N,D2).

    Returns:
        In [0, 1]; None where an embedding is the same for all samples, for which CKA is 0 / 0.
    """
    if any(bool((each == each[0]).all()) for each in (first, second)):
        return None
    x, y = (each.double() - each.double().mean(0) for each in (first, second))
    norm = torch.linalg.matrix_norm
    return (norm(y.T @ x).square() / (norm(x.T @ x) * norm(y.T @ y))).item()

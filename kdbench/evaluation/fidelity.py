"""Fidelity of a student to its teacher: similarity of their predictions and representations, in float64."""

import torch
from torch import Tensor
from torch.nn import functional as F


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Share of samples with the same predicted class (Stanton et al., NeurIPS 2021, arXiv 2106.05945); logits (N,K)."""
    return (student.argmax(1) == teacher.argmax(1)).double().mean().item()


def kl(student: Tensor, teacher: Tensor) -> float:
    """Mean of KL(teacher || student) between the softmax outputs at T = 1, in nats; logits (N,K)."""
    log_q, log_p = student.double().log_softmax(1), teacher.double().log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()


def cka(first: Tensor, second: Tensor) -> float | None:
    """Linear CKA of two embeddings of the same samples (Kornblith et al., ICML 2019, arXiv 1905.00414).

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) of the centred embeddings, computed in feature space, without an N x N matrix.
    It is 1 for embeddings that differ only by rotation, reflection, isotropic scaling and shift, and 0 for uncorrelated
    ones. It is biased upwards unless N is much larger than D1 and D2.

    Args:
        first: (N,D1).
        second: (N,D2).

    Returns:
        A value in [0, 1], or None if an embedding is the same for all samples, where CKA is 0 / 0.
    """
    if any(bool((embedding == embedding[0]).all()) for embedding in (first, second)):
        return None
    x, y = (embedding.double() - embedding.double().mean(0) for embedding in (first, second))
    norm = torch.linalg.matrix_norm
    return (norm(y.T @ x).square() / (norm(x.T @ x) * norm(y.T @ y))).item()

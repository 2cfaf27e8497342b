"""ABKD: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
alpha-beta-Divergence", ICML 2025 (arXiv 2505.04560).

    L = CE(z_s, y) + weight / B * sum_i D_ab( p_t,i || p_s,i ),   p = softmax(z / T)
    D_ab(p || q) = -1/(a b) sum_k [ p_k^a q_k^b - a/(a+b) p_k^(a+b) - b/(a+b) q_k^(a+b) ]

is the alpha-beta divergence of Cichocki, Cruces & Amari (2011), a = alpha, b = beta. Where a, b or a + b is 0, it is
continued to its limit:

    b = 0:       1/a^2 sum_k [ p_k^a log(p_k^a / q_k^a) - p_k^a + q_k^a ]         a = 1: KL(p || q)
    a = 0:       the same with a, p and b, q exchanged                            b = 1: KL(q || p), the reverse KL
    a + b = 0:   1/a^2 sum_k [ log(q_k^a / p_k^a) + p_k^a / q_k^a - 1 ]
    a = b = 0:   1/2 sum_k (log p_k - log q_k)^2

a = b = 1 is half the squared distance. The authors' code divides by a (or b) instead of its square in the limits, which
therefore jump unless a or b is 1. Like that code, the loss has no factor T^2. The defaults are its example for
resnet56 -> resnet20 in the README: a = 0.8, b = 0.3, T = 4, weight 32 (64 in its script).

If both exponents are at least 0, value and gradient are finite whatever the logits. A negative one divides by
probabilities, so that a class to which a network gives almost none can make the divergence overflow.
"""

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

SMALLEST = 0.01  # the size of an exponent other than 0, below which float32 loses the divergence to rounding


def ab_divergence(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """D_ab(p || q).

    Args:
        log_p: log-probabilities (B,K).
        log_q: log-probabilities (B,K).
        alpha: exponent of p.
        beta: exponent of q.

    Returns:
        (B,).
    """
    total = alpha + beta
    if alpha == 0 and beta == 0:
        return (log_p - log_q).square().sum(1) / 2
    if alpha == 0:
        return ab_divergence(log_q, log_p, beta, 0.0)
    if beta == 0:
        x, y = alpha * log_p, alpha * log_q
        return (x.exp() * (x - y) - x.exp() + y.exp()).sum(1) / alpha**2
    if total == 0:
        ratio = alpha * (log_p - log_q)
        return (ratio.expm1() - ratio).sum(1) / alpha**2
    # The three coefficients add up to 0, so that expm1 may replace exp: small exponents then lose fewer digits.
    terms = torch.expm1(alpha * log_p + beta * log_q)
    terms = terms - alpha / total * torch.expm1(total * log_p) - beta / total * torch.expm1(total * log_q)
    return -terms.sum(1) / (alpha * beta)


def abkd_loss(student: Tensor, teacher: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """D_ab(teacher || student) of the softened outputs, without T^2.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        alpha: exponent of the teacher's probabilities.
        beta: exponent of the student's probabilities.
        temperature: T > 0.

    Returns:
        Scalar, mean over the batch.
    """
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))
    return ab_divergence(log_p, log_q, alpha, beta).mean()


class ABKD(Method):
    """Soft targets, compared by a divergence between KL and reverse KL."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, alpha: float, beta: float, weight: float) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.weight = temperature, alpha, beta, weight

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse exponents that are too close to a limit, without being there.

        Raises:
            UserError: alpha, beta or their sum is not 0, but smaller than 0.01 in size.
        """
        for name, value in {"alpha": self.alpha, "beta": self.beta, "alpha+beta": self.alpha + self.beta}.items():
            if 0 < abs(value) < SMALLEST:
                raise UserError(f"abkd.{name}={value:g} is not allowed: it must be 0 or at least {SMALLEST} in size")

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`abkd`, the divergence."""
        loss = abkd_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature)
        return {"abkd": self.weight * loss}

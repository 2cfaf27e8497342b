"""WTTM: Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024 (arXiv 2402.11148).

    L = CE(z_s, y) + beta / B * sum_i U_i KL( t_i || softmax(z_s,i) ),   U = sum_k p_k^gamma,   p = softmax(z_t)

with t = p^gamma / U: the loss of `ttm`, where each sample is weighted by the power sum of the teacher's probabilities.
U is 1 where the teacher is certain and K^(1 - gamma) where all classes are equal to it, so that the soft targets count
where they differ most from a label, and beta is smaller than in `ttm`. All is computed in log-space.

The authors tune gamma and beta for each pair of networks (their appendix A.4); the defaults are those for resnet56 ->
resnet20, as in `ttm`.
"""

from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.ttm import TTM
from kdbench.models.features import Features


def wttm_loss(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """U KL(transformed teacher || student), without a temperature of the student and without T^2.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        exponent: gamma > 0 of the power transform.

    Returns:
        Scalar, mean over the batch, in nats.
    """
    log_powers = exponent * teacher.log_softmax(1)
    divergences = F.kl_div(student.log_softmax(1), log_powers.log_softmax(1), reduction="none", log_target=True).sum(1)
    return (log_powers.exp().sum(1) * divergences).mean()


class WTTM(TTM):
    """The student without a temperature learns the outputs of the teacher with one, the smooth ones most."""

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`wttm`, the soft term."""
        return {"wttm": self.weight * wttm_loss(student.logits, teacher.logits, self.exponent)}

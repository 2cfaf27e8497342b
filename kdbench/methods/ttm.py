"""TTM: Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024 (arXiv 2402.11148).

    L = CE(z_s, y) + beta / B * sum_i KL( t_i || softmax(z_s,i) )
    t_k = p_k^gamma / sum_j p_j^gamma,   p = softmax(z_t)

The power transform with exponent gamma is a temperature of 1 / gamma, which the teacher alone has: the student's
logits are not divided, and there is no factor T^2. The loss is that of KD with an additional term that rewards a high
Renyi entropy of the student (eq. 15). The transform is computed in log-space, as a softmax of gamma z_t.

The authors tune gamma and beta for each pair of networks (their appendix A.4); the defaults are those for resnet56 ->
resnet20. Weights such as the 45 for vgg13 -> vgg8, the example of their code, need a low learning rate (theirs is at
most 0.05): with 0.1, training can collapse to a constant output.
"""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.kd import kd_loss
from kdbench.methods.method import Method
from kdbench.models.features import Features


def ttm_loss(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """KL(transformed teacher || student), without a temperature of the student and without T^2.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        exponent: gamma > 0 of the power transform.

    Returns:
        Scalar, mean over the batch, in nats.
    """
    return kd_loss(student, exponent * teacher, 1.0)


class TTM(Method):
    """The student without a temperature learns the outputs of the teacher with one."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, weight: float, exponent: float) -> None:
        super().__init__()
        self.weight, self.exponent = weight, exponent

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`ttm`, the soft term."""
        return {"ttm": self.weight * ttm_loss(student.logits, teacher.logits, self.exponent)}

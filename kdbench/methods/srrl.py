"""SRRL: Yang, Martinez, Bulat & Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning".

ICLR 2021 (openreview ZzwDy_wiWv; no arXiv number is known to us).

    L = CE(z_s, y) + alpha mean (r(e_s) - e_t)^2 + beta mean (W_t r(e_s) + b_t - z_t)^2

where e are the embeddings, W_t and b_t the teacher's classifier, frozen, and r a connector that is trained with the
student and then discarded: a linear map without bias, batch norm and ReLU. Means are over batch and components. The
gradient of the last term passes through the teacher's classifier to the connector and the student. Both weights are 1
in the authors' code.

Departure: the authors connect the last maps and then average them; here, as in the code of SimKD, whose authors compare
with SRRL, the averaged map is connected. That code also adds KD, with weight 1: here that is `plus=[kd]`. After its
ReLU, the connector cannot match negative embeddings, such as those of a ViT: use `relu: false` there.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.catkd import linear_classifier
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes


def connector(student: int, teacher: int, relu: bool) -> nn.Sequential:
    """A connector from embeddings (B,student) to (B,teacher), which ends in a ReLU if `relu` is true."""
    layers = [nn.Linear(student, teacher, bias=False), nn.BatchNorm1d(teacher)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def srrl_losses(
    student: Tensor, teacher: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean squared differences of the embeddings, and of the logits that the teacher's classifier gives for them.

    Args:
        student: embeddings (B,D) after the connector.
        teacher: embeddings (B,D), constants.
        logits: (B,K) of the teacher, constants.
        weight: (K,D) of the teacher's classifier.
        bias: (K,) of the teacher's classifier, or None.

    Returns:
        Two scalars.
    """
    return F.mse_loss(student, teacher), F.mse_loss(F.linear(student, weight, bias), logits)


class SRRL(Method):
    """The student's connected embedding imitates the teacher's, also in what the teacher's classifier makes of it."""

    mixed_labels = True
    reads = ("embedding", "logits")

    def __init__(self, feature_weight: float, logit_weight: float, relu: bool) -> None:
        super().__init__()
        self.weights = {"feature": feature_weight, "logit": logit_weight}
        self.relu = relu

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Create the connector.

        Raises:
            UserError: the teacher's classifier is no linear layer.
        """
        linear_classifier(self.teacher.network, "teacher", "srrl")
        self.connector = connector(student.embedding, teacher.embedding, self.relu)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`feature` and `logit`, each unless its weight is 0."""
        classifier, connected = self.teacher.network.classifier, self.connector(student.embedding)
        bias = None if classifier.bias is None else classifier.bias.float()
        values = srrl_losses(connected, teacher.embedding, teacher.logits, classifier.weight.float(), bias)
        pairs = zip(self.weights.items(), values, strict=True)
        return {name: weight * value for (name, weight), value in pairs if weight}

"""Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016 (arXiv 1512.00567).

    L = (1 - eps) CE(z_s, y) + eps / (K - 1) * sum_{k != y} - log p_k

`variant: reference` (default) is this form, of the code of Yuan et al. (arXiv 1909.11723), with which teacher-free KD
is compared there; `paper` spreads eps over all K classes, the label included, as
`F.cross_entropy(label_smoothing=eps)`.
"""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features


def smoothing_loss(logits: Tensor, labels: Tensor, epsilon: float, others: bool) -> Tensor:
    """What label smoothing adds to (1 - epsilon) CE.

    Args:
        logits: (B,K).
        labels: (B,).
        epsilon: in [0, 1).
        others: spread epsilon over the K - 1 other classes; else over all K.

    Returns:
        Scalar, mean over the batch, in nats.
    """
    surprise = -logits.log_softmax(1)
    if others:
        surprise = surprise.scatter(1, labels[:, None], 0.0)
    return epsilon * surprise.sum(1).mean() / (logits.shape[1] - others)


class LS(MethodWithoutTeacher):
    """Labels that leave something to the other classes."""

    def __init__(self, epsilon: float, variant: str) -> None:
        super().__init__()
        self.epsilon, self.others = epsilon, variant == "reference"
        self.label_weight = 1 - epsilon

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """`ls`: the part of the other classes."""
        return {"ls": smoothing_loss(student.logits, batch.labels, self.epsilon, self.others)}

"""Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016 (arXiv 1512.00567).

    L = (1 - eps) CE(z_s, y) + eps / (K - 1) * sum_{k != y} - log p_k

This form, `variant: reference`, is the default. It is that of the code of Yuan et al. (arXiv 1909.11723), who compare
teacher-free KD with it. `variant: paper` spreads eps over all K classes, the label included, as
`F.cross_entropy(label_smoothing=eps)` does.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.machinery.stages import Stage
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features


def smoothing_loss(logits: Tensor, labels: Tensor, epsilon: float, exclude_label: bool) -> Tensor:
    """The term that label smoothing adds to (1 - epsilon) CE.

    Args:
        logits: (B,K).
        labels: (B,).
        epsilon: in [0, 1).
        exclude_label: whether epsilon is spread over the K - 1 other classes, or over all K.

    Returns:
        Scalar, mean over the batch, in nats.
    """
    negative_log_p = -logits.log_softmax(1)
    if exclude_label:
        negative_log_p = negative_log_p.scatter(1, labels[:, None], 0.0)
    return epsilon * negative_log_p.sum(1).mean() / (logits.shape[1] - exclude_label)


class LS(MethodWithoutTeacher):
    """Smoothed labels, which give a share of the probability to the other classes."""

    mixed_labels = True

    def __init__(self, epsilon: float, variant: str) -> None:
        super().__init__()
        self.epsilon, self.exclude_label = epsilon, variant == "reference"
        self.label_weight = 1 - epsilon

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """None.

        Raises:
            UserError: the recipe smooths the labels, too.
        """
        if recipe["label_smoothing"]:
            raise UserError(
                f"recipe.label_smoothing={recipe['label_smoothing']} is not possible with ls, only 0: "
                "it smooths the labels itself"
            )
        return []

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """`ls`, the smoothing term."""
        logits, epsilon = student.logits, self.epsilon
        return {"ls": batch.over_labels(lambda labels: smoothing_loss(logits, labels, epsilon, self.exclude_label))}

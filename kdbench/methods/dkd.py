"""DKD: Zhao, Cui, Song, Qiu & Liang, "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679).

    L = CE(z_s, y) + w(e) T^2 ( alpha KL( b_t || b_s ) + beta KL( q_t || q_s ) )

where b = (p_y, 1 - p_y) are the softened probabilities of the label and of all other classes together, and q those of
the other classes, divided by their sum. KD is the case alpha = 1 and beta = 1 - p_t,y of each sample (eq. 7). Both are
means over the batch, and are computed in log-space from the logits of the other classes: mdistiller subtracts 1000 from
the logit of the label and takes the logarithm of a sum of probabilities, which is not finite for saturated logits.

The defaults are those of mdistiller for CIFAR-100: T = 4, alpha = 1, beta = 8, and w, which rises linearly over the
first 20 epochs. In a batch with two labels for each image, both terms are the weighted mean of those for one label
each. With two classes there is one other class: the second term is 0, and the first is KD.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.methods.nkd import others
from kdbench.models.features import Features, Shapes


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log b (B,2) and log q (B,K-1) of logits (B,K)."""
    rest = others(logits, labels)
    both = torch.cat([logits.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], dim=1)
    return both.log_softmax(1), rest.log_softmax(1)


def dkd_terms(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(teacher || student) of the label against the other classes, and of these among themselves.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        labels: (B,).
        temperature: T > 0.

    Returns:
        Two scalars, means over the batch, in nats times T^2.
    """
    pairs = zip(*(_split(logits / temperature, labels) for logits in (student, teacher)), strict=True)
    target, other = (
        temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) for log_s, log_t in pairs
    )
    return target, other


class DKD(Method):
    """Soft targets, split into the label against the other classes and these among themselves."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, temperature: float, alpha: float, beta: float, warmup_epochs: int) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta, self.warmup_epochs = temperature, alpha, beta, warmup_epochs

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse options that leave nothing to learn from the teacher.

        Raises:
            UserError: two classes and no weight of the only term that is not 0.
        """
        if student.num_classes == 2 and not self.alpha:
            raise UserError(
                "dkd.alpha=0 is not possible with 2 classes, only > 0: the term of the other classes is then always 0"
            )

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`target`, the label against the other classes, and `other`, these among themselves."""

        def terms(labels: Tensor) -> Tensor:
            return torch.stack(dkd_terms(student.logits, teacher.logits, labels, self.temperature))

        target, other = batch.over_labels(terms)
        rise = self.progress.warmup(self.warmup_epochs)
        return {"target": rise * self.alpha * target, "other": rise * self.beta * other}

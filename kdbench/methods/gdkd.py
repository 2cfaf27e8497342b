"""GDKD: Zheng & Cheng, "Rethinking Decoupled Knowledge Distillation: A Predictive Distribution Perspective", IEEE TNNLS
2025 (arXiv 2512.04625).

    L = CE(z_s, y) + w(e) T^2 ( w0 KL( b_t || b_s ) + w1 KL( u_t || u_s ) + w2 KL( v_t || v_s ) )

where the k classes with the teacher's largest logits are one part and the rest the other: b are the softened
probabilities of the two parts, u those within the top k and v those within the rest, each divided by its sum. DKD
divides at the label instead; here no labels are needed. KD is the case w1 = mass of the top k and w2 = mass of the rest
of each sample. All three are means over the batch and are computed in log-space from the sorted logits, where the
authors' code subtracts 1000 from those of the other part.

T, the weights, k = 5 and w, which rises linearly over the first 20 epochs, are the defaults of the authors' code; the
files there give other weights for some pairs. `top: null` is 5, or all classes but one if there are fewer than six.
With two classes only the first term is left, which is then KD.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.models.features import Features, Shapes

TOP = 5  # k in the authors' code


def _parts(logits: Tensor, order: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log b (B,2), log u (B,k) and log v (B,K-k) of logits (B,K)."""
    ordered = logits.gather(1, order)
    best, rest = ordered[:, :top], ordered[:, top:]
    masses = torch.stack([best.logsumexp(1), rest.logsumexp(1)], dim=1)
    return masses.log_softmax(1), best.log_softmax(1), rest.log_softmax(1)


def gdkd_terms(student: Tensor, teacher: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """T^2 KL(teacher || student) between the two parts, within the teacher's top classes, and within the rest.

    Args:
        student: logits (B,K).
        teacher: logits (B,K), constants.
        top: k, from 1 to K - 1.
        temperature: T > 0.

    Returns:
        Three scalars, means over the batch, in nats times T^2.
    """
    order = teacher.argsort(dim=1, descending=True, stable=True)
    pairs = zip(*(_parts(logits / temperature, order, top) for logits in (student, teacher)), strict=True)
    partition, best, rest = (
        temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) for log_s, log_t in pairs
    )
    return partition, best, rest


class GDKD(Method):
    """Soft targets, split into the teacher's top classes and the rest."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(
        self,
        temperature: float,
        top: int | None,
        partition_weight: float,
        top_weight: float,
        rest_weight: float,
        warmup_epochs: int,
    ) -> None:
        super().__init__()
        self.temperature, self.choice, self.warmup_epochs = temperature, top, warmup_epochs
        self.weights = {"partition": partition_weight, "top": top_weight, "rest": rest_weight}

    def prepare(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the number of top classes.

        Raises:
            UserError: it leaves no class for the rest.
        """
        largest = student.num_classes - 1
        if self.choice is not None and self.choice > largest:
            raise UserError(
                f"gdkd.top={self.choice} is not allowed with {student.num_classes} classes: one must be left for the "
                f"rest, so it can be 1 to {largest}"
            )
        self.top = self.choice or min(TOP, largest)

    def losses(self, student: Features, teacher: Features, batch: Batch) -> dict[str, Tensor]:
        """`partition`, between the two parts, `top` and `rest`, within each."""
        terms = gdkd_terms(student.logits, teacher.logits, self.top, self.temperature)
        rise = self.progress.warmup(self.warmup_epochs)
        return {name: rise * weight * term for (name, weight), term in zip(self.weights.items(), terms, strict=True)}

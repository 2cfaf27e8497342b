"""Cross-entropy on the labels: a network alone. The baseline of every comparison, and how teachers are trained."""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.base import Method
from kdbench.models.features import Features


class CE(Method):
    """L = CE(z_s, y)."""

    def losses(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Nothing beside the cross-entropy."""
        return {}

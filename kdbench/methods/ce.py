"""Cross-entropy on the labels: a network alone. The baseline of every comparison, and how teachers are trained."""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features


class CE(MethodWithoutTeacher):
    """L = CE(z_s, y)."""

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """Nothing beside the cross-entropy."""
        return {}

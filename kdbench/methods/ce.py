"""A network alone, trained by cross-entropy on the labels: the baseline, and how teachers are trained."""

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.methods.method import MethodWithoutTeacher
from kdbench.models.features import Features


class CE(MethodWithoutTeacher):
    """L = CE(z_s, y)."""

    mixed_labels = True

    def losses(self, student: Features, batch: Batch) -> dict[str, Tensor]:
        """None beside the cross-entropy."""
        return {}

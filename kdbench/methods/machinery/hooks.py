"""What a method may define beside its losses, with what happens if it does not."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.data.streams import derive
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.stages import Progress, Stage
from kdbench.models.build import build
from kdbench.models.features import Features, Network
from kdbench.specs.spec import FinishedRun


class Hooks:
    """The optional part of the contract.

    Attributes:
        per_sample: the loss is a mean over samples; False where samples of a batch are compared with each other.
        student: the network that is trained.
        teacher: frozen; None where no loss needs one.
        label_weight: of the cross-entropy on the labels; a method may set it in `__init__`.
        progress: epoch within the stage, and epochs of the stage.
        watched: scalars of the last step that are recorded and not minimised; a method may fill it in `losses`.
        seed: of the run.
    """

    per_sample: ClassVar[bool] = True

    student: Network
    teacher: Teacher | None
    label_weight: float
    progress: Progress
    watched: dict[str, Tensor]
    seed: int

    def first_stages(self, recipe: Mapping[str, Any]) -> list[Stage]:
        """Stages that come before the recipe's own epochs; none by default."""
        return []

    def lr_multipliers(self) -> list[tuple[nn.Module, float]]:
        """Train-only modules whose learning rate is a multiple of the recipe's, with that multiple."""
        return []

    def transform_teacher(self, teacher: Features, batch: Batch) -> Features:
        """What the method, and all losses added to it, take for the teacher's features."""
        return teacher

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """A warning about an epoch's means of `watched`, if there is reason for one."""
        return None

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B,K) of the student (`student`, the headline) and of whatever else is trained to classify."""
        return {"student": self.student(images).logits}

    def receive(self, finished: Mapping[str, FinishedRun]) -> None:
        """Take what the runs that the method depends on have left: `teacher`, and those that its YAML declares."""

    def another_network(self, name: str | None, number: int) -> Network:
        """One more network for the same data.

        Args:
            name: of the network; None for the student's.
            number: of the random stream that initialises it.

        Raises:
            UserError: no such network.
        """
        origin = self.student.origin
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(derive(self.seed, "peer", number))
            return build(name or origin.name, source=origin.source, **origin.sizes)

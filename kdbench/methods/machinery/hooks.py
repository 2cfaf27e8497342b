"""What a method may define beside its losses, and what happens if it does not."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.data.streams import derive
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.reads import EVERYTHING
from kdbench.methods.machinery.stages import Progress, Stage
from kdbench.models.build import build
from kdbench.models.features import Features, Network
from kdbench.specs.spec import FinishedRun


class Hooks:
    """The optional part of the contract.

    Attributes:
        per_sample: whether the losses are means over samples; False where they compare the samples of a batch.
        mixed_labels: whether its losses can take images with two labels, which mixup and CutMix make: they read no
            labels, or read them through `label_loss` or `batch.over_labels` alone. Unless a method declares so, it is
            refused together with these.
        reads: what its losses read of the teacher's features, `stages`, `embedding` and `logits`, and `network` if they
            call the teacher themselves. Nothing else is given to them. Logits and embeddings can be kept between runs.
        student: the network that is trained.
        teacher: the frozen network; None where no loss needs one.
        label_weight: of the cross-entropy on the labels; a method may set it in `__init__`.
        progress: the epoch within the stage, and the number of epochs of the stage.
        watched: scalars of the last step that are recorded but not minimised; a method may set them in `losses`.
        seed: of the run.
    """

    per_sample: ClassVar[bool] = True
    mixed_labels: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = EVERYTHING

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
        """Train-only modules whose learning rate is a multiple of the recipe's, each with its multiple."""
        return []

    def transform_teacher(self, teacher: Features, batch: Batch) -> Features:
        """The features that the method, and all losses added to it, use as the teacher's."""
        return teacher

    def warning(self, watched: Mapping[str, float]) -> str | None:
        """A warning about an epoch's means of `watched`, or None if they are as they should be."""
        return None

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B,K) of the student (`student`, the headline) and of any other classifier that is trained."""
        return {"student": self.student(images).logits}

    def receive(self, finished: Mapping[str, FinishedRun]) -> None:
        """Load what the runs that this run depends on have left: `teacher`, and those that the YAML declares."""

    def another_network(self, name: str | None, number: int) -> Network:
        """One more network for the same data.

        Args:
            name: of the network; None or the student's own for another one like the student. A network of another
                name is of the same source, without the student's further options.
            number: of the random stream that initialises it.

        Raises:
            UserError: there is no such network.
        """
        options, sizes = self.student.origin
        if name not in (None, options["name"]):
            options = {"source": options["source"], "name": name}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(derive(self.seed, "peer", number))
            return build(**options, **sizes)

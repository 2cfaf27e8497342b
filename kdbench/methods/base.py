"""The contract of a method: Features of student and teacher, and the batch, give a dict of named losses."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench import optim
from kdbench.data.batch import Batch
from kdbench.evaluation.classification import Classification
from kdbench.models.features import Features, Network, Shapes


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or not a number; the message names the term, the epoch and the step."""


class Teacher(nn.Module):
    """A frozen network: no gradients, and in eval mode whatever anyone calls."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of `images` (B,C,H,W) in [0,1]; constants."""
        return self.network(images)


class Meter:
    """Sums of named scalars over an epoch, kept where they are computed: one host sync an epoch, none a step."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps = 0

    def update(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's terms (scalars)."""
        values = torch.stack([term.detach() for term in terms.values()]).float()
        if not self.steps:
            self.names = list(terms)
            self._sums = torch.zeros_like(values)
            self._finite_steps = torch.zeros_like(values)
            self._alive = torch.ones_like(values)
        self._sums += values
        # counts the steps before the first one that is not finite
        self._alive *= torch.isfinite(values)
        self._finite_steps += self._alive
        self.steps += 1

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each term since the last reset; syncs with the host.

        Raises:
            NonFiniteLoss: a term was not finite at some step.
        """
        if not self.steps:
            return {}
        sums, finite = torch.stack([self._sums, self._finite_steps]).tolist()
        for name, count in zip(self.names, finite, strict=True):
            if count < self.steps:
                raise NonFiniteLoss(f"loss term {name!r} is not finite at epoch {epoch}, step {int(count)}")
        return {name: total / self.steps for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Start an epoch."""
        self.steps = 0


class Method(pl.LightningModule):
    """A way to train a student.

    A subclass takes its own options in `__init__` and defines `losses`; where it trains modules beside the student
    it makes them in `prepare`. Everything else is here. `attach` gives it the networks.
    """

    # the loss is a mean over samples; False where samples of a batch are compared with each other
    per_sample: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.label_weight = 1.0  # of the cross-entropy on the labels
        self.meter = Meter()
        self.plus = nn.ModuleDict()
        self.student: Network
        self.teacher: Teacher | None

    # ---------------------------------------------------------------- what a method defines

    def prepare(self, student: Shapes, teacher: Shapes | None) -> None:
        """Make train-only modules from the shapes of the features; raise `UserError` if the pair cannot work."""

    def losses(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what every method has

    def attach(
        self,
        student: Network,
        teacher: Network | None,
        plus: Mapping[str, "Method"] | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> Self:
        """Give the method its networks, the losses added to it and its recipe; returns itself.

        The teacher is no sub-module: it is neither trained, nor saved, nor switched to train mode.
        """
        self.student = student
        object.__setattr__(self, "teacher", None if teacher is None else Teacher(teacher))
        self.recipe = recipe
        self.plus.update(plus or {})
        parts: list[Method] = [self, *(plus or {}).values()]
        for part in parts:
            part.prepare(student.shapes, teacher.shapes if teacher else None)
        self.metrics = Classification(student.shapes.num_classes)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if getattr(self, "teacher", None) is not None:
            self.teacher._apply(fn, recurse)  # type: ignore[union-attr]
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,K) of the student for images (B,C,H,W) in [0,1]."""
        return self.student(images).logits

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """All weighted losses of a batch by name: `ce`, the method's own, and `plus_<name>` for added ones."""
        student = self.student(batch.images)
        teacher = None if self.teacher is None else self.teacher(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            student = student.float()
            teacher = None if teacher is None else teacher.float()
            terms = {"ce": self.label_weight * F.cross_entropy(student.logits, batch.labels)}
            terms |= self.losses(student, teacher, batch)
            for name, part in self.plus.items():
                added = part.losses(student, teacher, batch)  # type: ignore[operator]
                terms |= {f"plus_{name}" if key == name else f"plus_{name}_{key}": added[key] for key in added}
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the terms."""
        terms = self.terms(batch)
        self.meter.update(terms)
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_start(self) -> None:
        """Start the epoch's means."""
        self.meter.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the student's hits."""
        self.metrics.update(self(batch.images).float(), batch.labels)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """One optimiser for the student and every train-only module; the schedule steps once an epoch."""
        assert self.recipe is not None
        optimizer, schedule = optim.build(self.recipe, self.parameters())
        return [optimizer], [schedule]

    def extra_parameters(self) -> int:
        """Number of parameters that are trained beside the student and never exported."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in own)

    def export(self) -> dict[str, Tensor]:
        """State of the student's network alone."""
        return self.student.export_state()

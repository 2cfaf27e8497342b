"""The LightningModule that all methods share: from a batch to the sum of its named losses, stage by stage."""

from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.machinery import optim
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.hooks import Hooks
from kdbench.methods.machinery.meter import Meter
from kdbench.methods.machinery.precision import without_autocast
from kdbench.methods.machinery.reads import declared, transformed
from kdbench.methods.machinery.shuffle import shuffled
from kdbench.methods.machinery.stages import Progress, Stage
from kdbench.models.features import Features, Network, Shapes
from kdbench.specs import recipes


class DistillationModule(Hooks, pl.LightningModule):
    """Trains a student with the losses of a method.

    How a step reaches the method: `training_step` sums the results of `batch_losses`. That makes the forward passes
    and calls `named_losses`, which combines the cross-entropy on the labels, the method's own `losses` and those of
    the methods in `plus`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label_weight = 1.0
        self.progress = Progress(0, 1)
        self.watched = {}
        self.plus = nn.ModuleDict()
        self.stages: list[Stage] = []
        self.loss_meter = Meter("loss term")
        self.watched_meter = Meter("watched value")

    # ---------------------------------------------------------------- defined by the two kinds of methods

    def prepare_for(self, student: Shapes, teacher: Shapes | None) -> None:
        """Call the method's `prepare`."""
        raise NotImplementedError

    def losses_of(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Call the method's `losses`."""
        raise NotImplementedError

    # ---------------------------------------------------------------- networks

    def attach(
        self,
        student: Network,
        teacher: Network | None,
        *,
        plus: Mapping[str, "DistillationModule"] | None = None,
        recipe: Mapping[str, Any] | None = None,
        seed: int = 0,
        shuffle: str = "none",
    ) -> Self:
        """Give the method its networks, the losses added to it and its recipe.

        The teacher does not become a sub-module: it is not trained, saved or switched to train mode.

        Args:
            student: to be trained; its weights are the result.
            teacher: frozen from now on; None where no loss needs one.
            plus: the methods whose `losses` are added, by name.
            recipe: the `recipe` group; None if nothing will be trained.
            seed: of the run.
            shuffle: of the teacher's features, the `order` of `shuffled`.

        Returns:
            The method itself.

        Raises:
            UserError: the method, or one added to it, cannot work with these networks or with each other.
        """
        self.student = student
        object.__setattr__(self, "teacher", None if teacher is None else Teacher(teacher))
        self.seed, self.shuffle = seed, shuffle
        self.plus.update(plus or {})
        for part in self._parts():
            part.prepare_for(student.shapes, teacher.shapes if teacher else None)
        if recipe is not None:
            for name, part in (plus or {}).items():
                if stages := part.first_stages(recipe):
                    raise UserError(
                        f"plus=[{name}] is not possible: it begins with a stage of its own ({stages[0].name}); "
                        f"plus.{name}.training=joint adds its loss to the method's"
                    )
            if recipe["accumulate"] > 1 and not self.automatic_optimization:
                raise UserError(
                    f"recipe.accumulate={recipe['accumulate']} is not possible with {type(self).__name__}, only 1: "
                    f"it makes several updates on the same batch"
                )
            self._check_mixing(recipe)
            self.stages = [*self.first_stages(recipe), Stage("training", recipe)]
            self.stage = self.stages[0]
        return self

    def _check_mixing(self, recipe: Mapping[str, Any]) -> None:
        mixing = recipes.mixing(recipe, "recipe")
        names = {type(self).__name__: self, **{f"plus=[{name}]": part for name, part in self._added().items()}}
        refusing = [name for name, part in names.items() if not part.mixed_labels]
        if mixing and refusing:
            raise UserError(
                f"{mixing} is not possible with {refusing[0]}, only 0: its losses do not take two labels for an image"
            )

    def _added(self) -> dict[str, "DistillationModule"]:
        return cast(dict[str, DistillationModule], dict(self.plus.items()))

    def _parts(self) -> Iterable["DistillationModule"]:
        return (self, *self._added().values())

    def teacher_reads(self) -> set[str]:
        """What the method and the losses added to it read of the teacher."""
        return {name for part in self._parts() for name in part.reads}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if teacher := getattr(self, "teacher", None):
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,K) of the student for images (B,C,H,W) in [0,1]."""
        return self.student(images).logits

    # ---------------------------------------------------------------- stages

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all stages together, of the last one only those up to `stop_after`."""
        total = sum(stage.recipe["epochs"] for stage in self.stages)
        last = self.stages[-1].recipe
        return total if last["stop_after"] is None else total - last["epochs"] + last["stop_after"]

    def enter_epoch(self, epoch: int) -> bool:
        """Set the stage and the progress.

        Args:
            epoch: counted from 0 over all stages.

        Returns:
            Whether the stage has changed.
        """
        previous = self.stage
        for stage in self.stages:
            if epoch < stage.recipe["epochs"]:
                break
            epoch -= stage.recipe["epochs"]
        self.stage = stage
        for part in self._parts():
            part.progress = Progress(epoch, stage.recipe["epochs"])
        return stage is not previous

    def configure_optimizers(self) -> Any:
        """One optimiser for the student and all train-only modules; its schedule steps once per epoch."""
        multipliers = [pair for part in self._parts() for pair in part.lr_multipliers()]
        optimizer, schedule = optim.build(self.stage.recipe, self.parameters(), multipliers)
        return [optimizer], [schedule]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the norm of the gradient, over all parameters of an optimiser, if the recipe says so."""
        if (largest := self.stage.recipe["grad_clip"]) is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, largest)

    # ---------------------------------------------------------------- the step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Sum of the losses; None if the method has already updated its networks itself."""
        losses = self.batch_losses(batch)
        self.measure(losses)
        return torch.stack(list(losses.values())).sum()

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """All weighted losses of a batch, by name."""
        return self.named_losses(*self.forward_both(batch), batch)

    def forward_both(self, batch: Batch) -> tuple[Features, Features | None]:
        """Features of student and teacher for a batch, in the run's precision."""
        return self.student(batch.images), None if self.teacher is None else self.teacher.answers(batch)

    def named_losses(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """The weighted losses of the current stage, in float32: `ce`, the method's, and `plus_<name>` for `plus`."""
        with without_autocast(batch.images):
            student = student.float()
            if teacher is not None:
                teacher = shuffled(teacher.float(), batch.labels, self.shuffle)
            if self.stage.losses is not None:
                return self.stage.losses(student, None if teacher is None else declared(teacher, self), batch)
            losses = {"ce": self.label_weight * self.label_loss(student.logits, batch)}
            if teacher is not None:
                teacher = transformed(teacher, self, batch)
            losses |= self.losses_of(student, None if teacher is None else declared(teacher, self), batch)
            for name, part in self._added().items():
                seen = None if teacher is None else declared(transformed(teacher, part, batch), part)
                for key, loss in part.losses_of(student, seen, batch).items():
                    losses[f"plus_{name}" if key == name else f"plus_{name}_{key}"] = loss
            return losses

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy on the labels, smoothed as the recipe says; mean over the batch, a scalar.

        Args:
            logits: (B,K), float32.
            batch: with the labels; of a mixed one, the mean for both labels, weighted with their shares.
        """
        smoothing = self.stage.recipe["label_smoothing"]
        return batch.over_labels(lambda labels: F.cross_entropy(logits, labels, label_smoothing=smoothing))

    def measure(self, losses: Mapping[str, Tensor]) -> None:
        """Add a step's losses and watched values to the means of the epoch."""
        self.loss_meter.update(losses)
        watched = dict(self.watched)
        for name, part in self._added().items():
            watched |= {f"plus_{name}_{key}": value for key, value in part.watched.items()}
        if watched:
            self.watched_meter.update(watched)

    def on_train_epoch_start(self) -> None:
        """Reset the means of the epoch."""
        self.loss_meter.reset()
        self.watched_meter.reset()

    # ---------------------------------------------------------------- results

    def extra_parameters(self) -> int:
        """Number of parameters that are trained beside the student and never exported."""
        exported = {id(parameter) for parameter in self.student.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in exported)

    def export(self) -> dict[str, Tensor]:
        """The state dict of the student's network alone."""
        return self.student.export_state()

"""The exponential moving average of a student's weights."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import pytorch_lightning as pl
from torch import nn

from kdbench.methods.machinery.module import DistillationModule

log = logging.getLogger("kdbench")
_MOST_OF_THE_START = 0.1  # share of the first weights in the average at the end, above which a warning says so


class Averaging(pl.Callback):
    """Averages the student's weights and batch statistics after every step of the optimiser.

    The average begins with the weights after the first step, and continues through all stages of a method. Networks
    that are trained beside the student are not averaged.

    Args:
        decay: of the average, in (0, 1).
        exported: whether the average, or the weights of the last step, are the result of the run.
    """

    def __init__(self, decay: float, exported: bool) -> None:
        self.decay, self.exported = decay, exported
        self.updates = 0
        self._restored: dict[str, Any] | None = None

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Self | None:
        """That of a recipe; None if it has none."""
        return None if recipe["ema"] is None else cls(recipe["ema"], recipe["ema_export"])

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of its updates."""
        return {"updates": self.updates, "weights": self.average.module.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, once the student is on its device."""
        self.updates, self._restored = state_dict["updates"], state_dict["weights"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the average."""
        from timm.utils import ModelEmaV3  # here, because timm takes seconds to import

        assert isinstance(pl_module, DistillationModule)
        self.average = ModelEmaV3(pl_module.student, self.decay)
        if self._restored is not None:
            self.average.module.load_state_dict(self._restored)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how many steps the optimisers have made; warn of an average that never forgets the random weights."""
        self._steps = trainer.global_step
        steps = int(trainer.estimated_stepping_batches)
        if (left := self.decay**steps) > _MOST_OF_THE_START and trainer.current_epoch == 0:
            log.warning(
                "recipe.ema=%g averages over about %.0f steps, and the training has %d: %.0f %% of the average are the "
                "weights after the first one", self.decay, 1 / (1 - self.decay), steps, 100 * left,
            )  # fmt: skip

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Update the average, unless gradients are still being accumulated."""
        if trainer.global_step == self._steps:
            return
        assert isinstance(pl_module, DistillationModule)
        self._steps = trainer.global_step
        self.updates += 1
        self.average.update(pl_module.student, self.updates)  # the first update copies the weights

    def apply(self, student: nn.Module) -> None:
        """Give a student the averaged weights."""
        student.load_state_dict(self.average.module.state_dict())

    @contextmanager
    def applied(self, student: nn.Module) -> Iterator[None]:
        """Give a student the averaged weights for a while."""
        trained = {name: value.clone() for name, value in student.state_dict().items()}
        self.apply(student)
        try:
            yield
        finally:
            student.load_state_dict(trained)

"""Methods that update several sets of parameters one after the other, on the same batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdbench.data.batch import Batch
from kdbench.methods.machinery import optim
from kdbench.methods.machinery.module import DistillationModule


class Update(NamedTuple):
    """One update of a step.

    Attributes:
        parameters: updated by an optimiser of their own.
        recipe: of this optimiser and its schedule.
        losses: the named losses of a batch; called after all previous updates have been made.
    """

    parameters: Iterable[nn.Parameter]
    recipe: Mapping[str, Any]
    losses: Callable[[Batch], dict[str, Tensor]]


class SeveralOptimizers(DistillationModule):
    """A method whose step is a sequence of updates, each with its own optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def parameters_without(self, module: nn.Module) -> list[nn.Parameter]:
        """All parameters, of the student and of everything trained with it, except those of one module."""
        excluded = {id(parameter) for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in excluded]

    def updates(self) -> list[Update]:
        """The updates of a step, in order."""
        raise NotImplementedError

    def batch_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of all updates, without making any of them."""
        return {name: loss for update in self.updates() for name, loss in update.losses(batch).items()}

    def configure_optimizers(self) -> Any:
        """An optimiser and a schedule for each update."""
        self.planned_updates = self.updates()
        built = [optim.build(update.recipe, update.parameters) for update in self.planned_updates]
        return [optimizer for optimizer, _ in built], [schedule for _, schedule in built]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make all updates."""
        measured: dict[str, Tensor] = {}
        for update, optimizer in zip(self.planned_updates, cast(list[Optimizer], self.optimizers()), strict=True):
            losses = update.losses(batch)
            optimizer.zero_grad()
            self.manual_backward(torch.stack(list(losses.values())).sum())
            optimizer.step()
            measured |= losses
        self.measure(measured)

    def on_train_batch_end(self, *_: Any) -> None:
        """Step the schedules after the last batch of an epoch, as Lightning does for the other methods."""
        if self.trainer.is_last_batch:
            for schedule in cast(list[LRScheduler], self.lr_schedulers()):
                schedule.step()

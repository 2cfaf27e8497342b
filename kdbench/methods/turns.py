"""Methods that update several sets of parameters, one after the other, on the same batch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdbench import optim
from kdbench.data.batch import Batch
from kdbench.methods.base import Method


class Turn(NamedTuple):
    """One update of a step.

    Attributes:
        parameters: updated by an optimiser of their own.
        recipe: of that optimiser and its schedule.
        terms: named losses of a batch; called when all turns before it have been made.
    """

    parameters: Iterable[nn.Parameter]
    recipe: dict[str, Any]
    terms: Callable[[Batch], dict[str, Tensor]]


class InTurns(Method):
    """A method whose step is a sequence of turns."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def all_but(self, module: nn.Module) -> list[nn.Parameter]:
        """The student's parameters and those of what is trained with it: all but a module's."""
        theirs = {id(parameter) for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in theirs]

    def turns(self) -> list[Turn]:
        """The turns of a step, in order."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of all turns, nothing being updated between them."""
        return {name: term for turn in self.turns() for name, term in turn.terms(batch).items()}

    def configure_optimizers(self) -> Any:
        """An optimiser and a schedule for each turn."""
        self.order = self.turns()
        built = [optim.build(turn.recipe, turn.parameters) for turn in self.order]
        return [optimizer for optimizer, _ in built], [schedule for _, schedule in built]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make the turns."""
        everything: dict[str, Tensor] = {}
        for turn, optimizer in zip(self.order, cast(list[Optimizer], self.optimizers()), strict=True):
            terms = turn.terms(batch)
            optimizer.zero_grad()
            self.manual_backward(torch.stack(list(terms.values())).sum())
            optimizer.step()
            everything |= terms
        self.tally(everything)

    def on_train_batch_end(self, *_: Any) -> None:
        """Step the schedules after the last batch of an epoch, as Lightning does for the other methods."""
        if self.trainer.is_last_batch:
            for schedule in cast(list[LRScheduler], self.lr_schedulers()):
                schedule.step()

"""Stages of a training: a method may train something else before the recipe's own epochs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Progress(NamedTuple):
    """How far a stage is.

    Attributes:
        epoch: the current epoch, counted from 0.
        epochs: the number of epochs.
    """

    epoch: int
    epochs: int

    def warmup(self, epochs: int) -> float:
        """A factor that rises linearly to 1, which it has in the last of so many epochs; always 1 with 0 epochs."""
        return min((self.epoch + 1) / epochs, 1.0) if epochs else 1.0


class Stage(NamedTuple):
    """A part of the training, with its own optimiser and schedule.

    Attributes:
        name: for the record and the screen.
        recipe: as the `recipe` group; its `epochs` are those of the stage.
        losses: from (student, teacher, batch) to the named and weighted losses, which are all that the stage
            minimises; None for the cross-entropy on the labels, the method's losses and those that `plus` adds.
    """

    name: str
    recipe: Mapping[str, Any]
    losses: Callable[..., dict[str, Tensor]] | None = None


def first_stage(
    name: str, schedule: Mapping[str, float], recipe: Mapping[str, Any], losses: Callable[..., dict[str, Tensor]]
) -> Stage:
    """A stage before the recipe's own epochs.

    Args:
        name: of the stage.
        schedule: `epochs`, its length as a fraction of `recipe.epochs` (at least one epoch), and `lr`, its constant
            learning rate as a multiple of `recipe.lr`.
        recipe: of the run; the stage takes everything else from it.
        losses: as in `Stage`.
    """
    epochs = max(1, round(schedule["epochs"] * recipe["epochs"]))
    changes = {"epochs": epochs, "lr": schedule["lr"] * recipe["lr"], "schedule": "constant", "warmup_epochs": 0}
    return Stage(name, {**recipe, **changes}, losses)

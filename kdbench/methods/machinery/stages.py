"""Stages of a training: a method may train something else before the recipe's own epochs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Progress(NamedTuple):
    """How far a stage is: `epoch`, counted from 0, of `epochs`."""

    epoch: int
    epochs: int


class Stage(NamedTuple):
    """A part of the training, with an optimiser and a schedule of its own.

    Attributes:
        name: for the record and the screen.
        recipe: as the `recipe` group; its `epochs` are those of the stage.
        losses: named and weighted losses of (student, teacher, batch), which are all that the stage minimises; None
            for the cross-entropy on the labels, the method's losses and those that `plus` adds.
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
        schedule: `epochs`, its length as a fraction of `recipe.epochs` (at least one epoch), and `lr`, constant, as a
            multiple of `recipe.lr`.
        recipe: of the run; everything else is taken from it.
        losses: as of `Stage`.
    """
    epochs = max(1, round(schedule["epochs"] * recipe["epochs"]))
    changed = {"epochs": epochs, "lr": schedule["lr"] * recipe["lr"], "schedule": "constant", "warmup_epochs": 0}
    return Stage(name, {**recipe, **changed}, losses)

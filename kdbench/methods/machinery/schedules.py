"""The learning-rate schedule of a recipe, built from torch's own classes and stepped once after every epoch."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from kdbench.errors import UserError


def build(recipe: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    """The schedule of an optimiser, after a linear warm-up if the recipe has one.

    The drops of `schedule: step` are fractions of the training, so a shortened recipe keeps its proportions.

    Args:
        recipe: the `recipe` group.
        optimizer: whose learning rates are changed, each group's in the same proportion.

    Raises:
        UserError: nobody knows the name of the schedule.
    """
    warmup = recipe["warmup_epochs"]
    main = _after_warmup(recipe, optimizer)
    if not warmup:
        return main
    ramp = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [ramp, main], [warmup])


def _after_warmup(recipe: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    epochs, warmup, final = recipe["epochs"], recipe["warmup_epochs"], recipe["final_lr_factor"]
    remaining = epochs - warmup
    match recipe["schedule"]:
        case "step":
            milestones = [round(drop * epochs) - warmup for drop in recipe["drops"]]
            return MultiStepLR(optimizer, milestones, recipe["factor"])
        case "cosine" if final:  # the minimum of CosineAnnealingLR would be the same for groups with other rates
            return LambdaLR(optimizer, lambda epoch: cosine(epoch / remaining, final))
        case "cosine":
            return CosineAnnealingLR(optimizer, remaining)
        case "linear":
            return LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=remaining)
        case "constant":
            return ConstantLR(optimizer, factor=1.0)
        case "onecycle":
            rates = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, rates, total_steps=epochs, cycle_momentum=False)
    raise UserError(
        f"recipe.schedule={recipe['schedule']} is not allowed: it must be one of step, cosine, linear, constant, "
        "onecycle"
    )


def cosine(progress: float, final: float) -> float:
    """Half a cosine wave from 1 to `final`, at a fraction `progress` of the training."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

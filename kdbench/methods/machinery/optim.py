"""The optimiser and learning-rate schedule of a recipe, built from torch's own classes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)


def build(
    recipe: Mapping[str, Any], parameters: Iterable[nn.Parameter], multipliers: Sequence[tuple[nn.Module, float]] = ()
) -> tuple[Optimizer, LRScheduler]:
    """An optimiser, and its schedule, which is to be stepped once after every epoch.

    The drops of `schedule: step` are fractions of the training, so a shortened recipe keeps its proportions.

    Args:
        recipe: the `recipe` group.
        parameters: to be trained.
        multipliers: modules among them whose learning rate is a multiple of the recipe's, each with its multiple.
    """
    multiplied = {id(parameter) for module, _ in multipliers for parameter in module.parameters()}
    others = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in multiplied]
    groups = [{"params": others}]
    groups += [{"params": list(module.parameters()), "lr": factor * recipe["lr"]} for module, factor in multipliers]
    optimizer: Optimizer
    if recipe["optimizer"] == "sgd":
        optimizer = SGD(
            groups, recipe["lr"], recipe["momentum"], weight_decay=recipe["weight_decay"],
            nesterov=recipe["nesterov"], fused=True,
        )  # fmt: skip
    else:
        optimizer = AdamW(groups, recipe["lr"], weight_decay=recipe["weight_decay"], fused=True)
    epochs, warmup = recipe["epochs"], recipe["warmup_epochs"]
    main: LRScheduler
    if recipe["schedule"] == "step":
        milestones = [round(drop * epochs) - warmup for drop in recipe["drops"]]
        main = MultiStepLR(optimizer, milestones, recipe["factor"])
    elif recipe["schedule"] == "cosine":
        main = CosineAnnealingLR(optimizer, epochs - warmup)
    else:
        main = ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return optimizer, main
    ramp = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return optimizer, SequentialLR(optimizer, [ramp, main], [warmup])

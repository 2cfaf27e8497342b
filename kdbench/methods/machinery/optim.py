"""The optimiser of a recipe: torch's own, or timm's for the names that torch does not know."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LRScheduler

from kdbench.errors import UserError
from kdbench.methods.machinery import schedules
from kdbench.specs.recipes import check_betas


def build(
    recipe: Mapping[str, Any], parameters: Iterable[nn.Parameter], multipliers: Sequence[tuple[nn.Module, float]] = ()
) -> tuple[Optimizer, LRScheduler]:
    """An optimiser, and its schedule, which is to be stepped once after every epoch.

    Args:
        recipe: the `recipe` group.
        parameters: to be trained.
        multipliers: modules among them whose learning rate is a multiple of the recipe's, each with its multiple.

    Raises:
        UserError: nobody knows the name of the optimiser or of the schedule, or the optimiser has no such betas.
    """
    multiplied = {id(parameter) for module, _ in multipliers for parameter in module.parameters()}
    others = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in multiplied]
    groups: list[dict[str, Any]] = [{"params": others}]
    groups += [{"params": list(module.parameters()), "lr": factor * recipe["lr"]} for module, factor in multipliers]
    optimizer = _optimizer(recipe, groups)
    return optimizer, schedules.build(recipe, optimizer)


def _optimizer(recipe: Mapping[str, Any], groups: list[dict[str, Any]]) -> Optimizer:
    name, lr, decay = recipe["optimizer"], recipe["lr"], recipe["weight_decay"]
    momentum, nesterov = recipe["momentum"], recipe["nesterov"]
    check_betas(recipe, "recipe")
    betas: dict[str, Any] = {} if recipe["betas"] is None else {"betas": tuple(recipe["betas"])}
    # In 16-mixed, a fused optimiser divides the gradients by the scale of the loss itself, too late for clipping. None,
    # not False, which would update the parameters one by one on CUDA, too.
    fused = True if recipe["grad_clip"] is None else None
    match name:
        case "sgd":
            return SGD(groups, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
        case "adam":
            return Adam(groups, lr, weight_decay=decay, fused=fused, **betas)
        case "adamw":
            return AdamW(groups, lr, weight_decay=decay, fused=fused, **betas)
        case "rmsprop":
            return RMSprop(groups, lr, momentum=momentum, weight_decay=decay)
        case "lars":
            return _of_timm(groups, name, lr, decay, momentum, nesterov=nesterov)
        case "lamb" | "lion" | "nadamw" | "radam" | "adan":
            return _of_timm(groups, name, lr, decay, **betas)
    raise UserError(
        f"recipe.optimizer={name} is not allowed: it must be one of sgd, adam, adamw, rmsprop, lamb, lars, lion, "
        "nadamw, radam, adan"
    )


def _of_timm(*args: Any, **kwargs: Any) -> Optimizer:
    from timm.optim import create_optimizer_v2  # here, because timm takes seconds to import

    return create_optimizer_v2(*args, **kwargs)

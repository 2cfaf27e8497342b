"""What the rules of single keys cannot say about a recipe: which values go together. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from kdbench.errors import UserError

# Numbers of betas, by optimiser; the others have none.
BETAS = {"adam": 2, "adamw": 2, "lamb": 2, "lion": 2, "nadamw": 2, "radam": 2, "adan": 3}


def check(recipe: Mapping[str, Any], key: str) -> None:
    """Refuse a recipe whose values contradict each other, or would be ignored.

    Args:
        recipe: the `recipe` group, or that of the teacher.
        key: what to call it in messages, `recipe` or `teacher.recipe`.

    Raises:
        UserError: see above.
    """
    drops, warmup, epochs = recipe["drops"], recipe["warmup_epochs"], recipe["epochs"]
    if not all(isinstance(drop, int | float) and 0 < drop < 1 for drop in drops):
        raise UserError(f"{key}.drops={drops} is not allowed: fractions of the training, each in (0, 1)")
    if recipe["stop_after"] is not None and recipe["stop_after"] > epochs:
        raise UserError(f"{key}.stop_after={recipe['stop_after']} is not allowed: {key}.epochs={epochs} is less")
    if warmup >= epochs:
        raise UserError(f"{key}.warmup_epochs={warmup} is not allowed: it must be < {key}.epochs={epochs}")
    _check_schedule(recipe, key)
    check_betas(recipe, key)
    if recipe["optimizer"] in ("sgd", "lars") and recipe["nesterov"] and not recipe["momentum"]:
        raise UserError(f"{key}.nesterov=True is not allowed with {key}.momentum=0: it must be > 0")
    if recipe["ema"] is None and not recipe["ema_export"]:
        raise UserError(f"{key}.ema_export=False is not allowed with {key}.ema=null: there is no average to leave out")


def check_cutout(recipe: Mapping[str, Any], key: str, image_size: int) -> None:
    """Refuse a square that leaves nothing of an image, wherever its centre is.

    Args:
        recipe: as for `check`.
        key: as for `check`.
        image_size: side of the images, in pixels.

    Raises:
        UserError: see above.
    """
    if recipe["cutout"] >= 2 * image_size:
        raise UserError(
            f"{key}.cutout={recipe['cutout']} is not allowed: it must be < {2 * image_size}, twice the side of the "
            f"images, or nothing is left of them"
        )


def mixing(recipe: Mapping[str, Any], key: str) -> str | None:
    """What mixes the labels of images, such as `recipe.mixup=0.2`; None if nothing does.

    Args:
        recipe: as for `check`.
        key: as for `check`.
    """
    return next((f"{key}.{name}={recipe[name]}" for name in ("mixup", "cutmix") if recipe[name]), None)


def check_betas(recipe: Mapping[str, Any], key: str) -> None:
    """Refuse betas that the optimiser does not have.

    Args:
        recipe: as for `check`.
        key: as for `check`.

    Raises:
        UserError: see above.
    """
    betas, optimizer = recipe["betas"], recipe["optimizer"]
    if betas is None:
        return
    count = BETAS.get(optimizer)
    if not count:
        raise UserError(f"{key}.betas={betas} is not allowed with {key}.optimizer={optimizer}, which has none: null")
    numbers = [beta for beta in betas if isinstance(beta, int | float) and not isinstance(beta, bool)]
    if not (len(betas) == len(numbers) == count and all(0 <= beta < 1 for beta in numbers)):
        raise UserError(
            f"{key}.betas={betas} is not allowed: {key}.optimizer={optimizer} takes {count} numbers in [0, 1)"
        )


def _check_schedule(recipe: Mapping[str, Any], key: str) -> None:
    schedule, final, warmup = recipe["schedule"], recipe["final_lr_factor"], recipe["warmup_epochs"]
    if final and schedule not in ("cosine", "linear"):
        raise UserError(
            f"{key}.final_lr_factor={final} is not allowed with {key}.schedule={schedule}, only with cosine and linear"
        )
    if warmup and schedule == "onecycle":
        raise UserError(
            f"{key}.warmup_epochs={warmup} is not allowed with {key}.schedule=onecycle, which rises by itself: 0"
        )

"""The different views of training images: how many crops and flips there are. Imports no torch."""

from collections.abc import Mapping
from typing import Any

# Keys of a recipe that change finished batches, after which an image has no countable views.
_CHANGES = ("erasing", "cutout", "mixup", "cutmix")
_WORTHWHILE = 0.05  # share of a training's views that come again, from which teacher.cache=auto keeps answers
# Training images of the sources that have a fixed number of them.
_IMAGES = {
    "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "stl10": 5_000, "mnist": 60_000, "fashion_mnist": 60_000,
    "tinyimagenet": 100_000, "digits": 1_438, "mnist5k": 4_000,
}  # fmt: skip


def training_images(dataset: Mapping[str, Any]) -> int | None:
    """Number of images in the training set of a source, before imbalance and split; None if only reading them tells.

    Args:
        dataset: the `dataset` group.
    """
    if dataset.get("tree"):
        return None
    number: int | None = dataset.get("num_train", _IMAGES.get(dataset["source"]))
    return number


def views_of(crop_padding: int | None, flip: bool, augment: str) -> int | None:
    """Number of different crops and flips of an image; None where they cannot be counted.

    Args:
        crop_padding: pixels added on each side before the random crop; None for a random resized crop.
        flip: whether images are mirrored at random.
        augment: `none`, or random operations after crop and flip.
    """
    if crop_padding is None or augment != "none":
        return None
    return (2 * crop_padding + 1) ** 2 * (1 + flip)


def uncountable(dataset: Mapping[str, Any], recipe: Mapping[str, Any]) -> str | None:
    """The option because of which the views of a training image cannot be counted; None if they can.

    Args:
        dataset: the `dataset` group.
        recipe: the `recipe` group.
    """
    if dataset["crop_padding"] is None:
        return "dataset.crop_padding=null"
    if dataset["loader"] == "streaming":
        return "dataset.loader=streaming"
    if recipe["augment"] != "none":
        return f"recipe.augment={recipe['augment']}"
    return next((f"recipe.{key}={recipe[key]}" for key in _CHANGES if recipe[key]), None)


def worth_keeping(views: int, epochs: int) -> bool:
    """Whether a training alone meets enough views again that answers to them are worth keeping.

    Args:
        views: of an image.
        epochs: of the training.
    """
    different = views * (1 - (1 - 1 / views) ** epochs)  # expected number of views of an image that the epochs meet
    return 1 - different / max(1, epochs) >= _WORTHWHILE

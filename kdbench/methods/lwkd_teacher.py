"""The lightweight teacher of LW-KD: the run that trains it on synthetic images. Does not import torch."""

from collections.abc import Mapping
from typing import Any

from kdbench.config.derived import training_alone
from kdbench.config.frozen import FrozenDict
from kdbench.config.groups import content
from kdbench.data.sources import Sizes
from kdbench.errors import UserError

NAME = "lightweight_teacher"


def dependencies(cfg: Mapping[str, Any], sizes: Sizes) -> dict[str, FrozenDict]:
    """The run that an LW-KD run depends on.

    Args:
        cfg: the checked configuration of the LW-KD run.
        sizes: of its data.

    Returns:
        The configuration of the run that trains the lightweight teacher, by its name.

    Raises:
        UserError: the data have too few or too many classes to be synthesised.
    """
    if not 2 <= sizes.num_classes <= 1000:
        raise UserError(
            f"method=lwkd can synthesise 2 to 1000 classes, and dataset={cfg['dataset']['name']} has "
            f"{sizes.num_classes}"
        )
    synthetic = cfg["method"]["synthetic"]
    dataset = {
        **content("dataset/synmnist"),
        **{key: synthetic[key] for key in ("digits", "num_train", "num_test", "seed", "map_seed")},
        "root": cfg["dataset"]["root"],
        "num_classes": sizes.num_classes,
        "image_size": synthetic["image_size"] or sizes.image_size,
    }
    recipe = {
        **content("recipe/crd240"),
        **{key: synthetic[key] for key in ("epochs", "batch_size", "lr")},
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "schedule": "cosine",
    }
    run = training_alone(
        cfg,
        student={**content("student/_base"), "name": synthetic["teacher"]},
        dataset=dataset,
        noise=content("noise/none"),
        imbalance=content("imbalance/none"),
        recipe=recipe,
        seed=synthetic["seed"],
    )
    return {NAME: run}

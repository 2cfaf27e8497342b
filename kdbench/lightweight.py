"""The lightweight teacher: a small network trained on synthetic images, and its answers to them, by class."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kdbench import teachers
from kdbench.config import content
from kdbench.data import sources
from kdbench.errors import UserError
from kdbench.run import Run

if TYPE_CHECKING:
    from kdbench.methods.lwkd import Bank

_CHUNK = 1000  # images answered at a time


def needed(cfg: dict[str, Any]) -> bool:
    """Whether the method asks for one."""
    return "synthetic" in cfg["method"]["needs"]


def own_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Configuration of the run that trains the lightweight teacher of `cfg`."""
    wanted = cfg["method"]["synthetic"]
    own = copy.deepcopy(cfg)
    keys = ("digits", "num_train", "num_test", "seed", "map_seed")
    target = {"root": cfg["dataset"]["root"], "num_classes": sources.check(cfg["dataset"])}
    target["image_size"] = wanted["image_size"] or sources.image_size(cfg["dataset"])
    recipe = {"epochs": wanted["epochs"], "batch_size": wanted["batch_size"], "lr": wanted["lr"]}
    own |= {
        "method": content("method/ce"),
        "plus": {},
        "student": {"source": "cifar", "name": wanted["teacher"]},
        "dataset": {**content("dataset/synmnist"), **{key: wanted[key] for key in keys}, **target},
        "noise": content("noise/none"),
        "imbalance": content("imbalance/none"),
        "recipe": {
            **content("recipe/crd240"),
            **recipe,
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "schedule": "cosine",
        },
        "seed": wanted["seed"],
        "force": False,
        "stage": "student",
    }
    return own


def check(cfg: dict[str, Any]) -> None:
    """Refuse what cannot be synthesised, before anything is trained.

    Raises:
        UserError: too many classes, images too small for their digits, or no such digits.
    """
    own = own_config(cfg)
    classes = own["dataset"]["num_classes"]
    if not 2 <= classes <= 1000:
        raise UserError(
            f"method=lwkd can synthesise 2 to 1000 classes, and dataset={cfg['dataset']['name']} has {classes}"
        )
    try:
        sources.check(own["dataset"])
    except UserError as error:
        raise UserError(f"method=lwkd cannot synthesise its data: {error}") from error


def bank_of(cfg: dict[str, Any], conduct: Callable[[dict[str, Any], str], Run]) -> tuple["Bank", float]:
    """The answers of the lightweight teacher of `cfg` to its training images, not augmented; and its training seconds.

    Args:
        cfg: of the run that needs it.
        conduct: brings the teacher's run to its end.
    """
    import torch

    from kdbench.methods.lwkd import Bank

    own, wanted = own_config(cfg), cfg["method"]
    taught = teachers.from_run(conduct(own, "teacher"), own["student"], teachers.sizes_of(own["dataset"]))
    train, _ = sources.load(own["dataset"])
    network = taught.network.eval()
    answers = []
    with torch.no_grad():
        for start in range(0, len(train.labels), _CHUNK):
            images = torch.from_numpy(train.images[start : start + _CHUNK].copy()).permute(0, 3, 1, 2).float() / 255
            answers.append(network(images).logits)
    labels = torch.from_numpy(train.labels.copy())
    assert taught.seconds is not None
    return Bank.of(torch.cat(answers), labels, wanted["targets"], wanted["correct_only"]), taught.seconds

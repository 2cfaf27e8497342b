"""Configurations of the runs that another run depends on."""

from collections.abc import Mapping
from typing import Any

from kdbench.config.frozen import FrozenDict
from kdbench.config.groups import content
from kdbench.config.networks import network_keys


def training_alone(cfg: Mapping[str, Any], **groups: Any) -> FrozenDict:
    """The configuration of a network that is trained alone, by cross-entropy, on the way to the run of `cfg`.

    Args:
        cfg: the checked configuration of the run that needs the network.
        groups: whole groups and keys that differ from `cfg`: `student`, `recipe`, `dataset`, `seed` ...
    """
    trainer = {**cfg["trainer"], "callbacks": None}  # what is trained once for many runs knows nothing of theirs
    alone = {"method": content("method/ce"), "plus": {}, "trainer": trainer, "force": False, "stage": "student"}
    return FrozenDict.of({**cfg, **alone, **groups})


def teacher_training(cfg: Mapping[str, Any]) -> FrozenDict:
    """The configuration of the run that trains the teacher of `cfg`, on the same or on clean data."""
    teacher = cfg["teacher"]
    data = {"noise": content("noise/none"), "imbalance": content("imbalance/none")}
    return training_alone(
        cfg,
        student={**network_keys(teacher), "init": teacher["init"]},
        recipe=teacher["recipe"],
        seed=teacher["seed"],
        **(data if teacher["condition"] == "clean" else {}),
    )

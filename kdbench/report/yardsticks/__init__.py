"""Published values, beside which ours are printed where the experiment is the same one.

`*.csv`, a line a value: teacher (empty for a network alone), student, method, test accuracy in %, protocol (`last
epoch` or `best epoch on test`), number of runs (empty where the source does not say) and source. All are CIFAR-100
with the 240 epochs of recipe=crd240.
"""

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.config.groups import content
from kdbench.config.overrides import from_overrides
from kdbench.records.identity import needs_teacher

# learning rates that the published tables have for some networks
_SLOW = {"mobilenetv2": 0.01, "shufflenetv1": 0.01, "shufflenetv2": 0.01}


class Yardstick(NamedTuple):
    """A published test accuracy, a fraction, and how it came about."""

    accuracy: float
    protocol: str
    runs: int | None
    source: str


@lru_cache
def yardsticks() -> dict[tuple[str, str, str], Yardstick]:
    """All published values by (teacher, student, method); teacher is empty for a network alone."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.csv")):
        with path.open(newline="") as handle:
            for row in csv.DictReader(handle):
                runs = int(row["runs"]) if row["runs"] else None
                value = Yardstick(float(row["accuracy"]) / 100, row["protocol"], runs, row["source"])
                found[row["teacher"], row["student"], row["method"]] = value
    return found


def published(cfg: dict[str, Any]) -> Yardstick | None:
    """The published value of a run's experiment, or None where there is none or the run departs from it.

    Same are: data (all 50,000 images, no noise, no imbalance), networks, method with its own defaults, recipe crd240 to
    its end, and a teacher trained likewise or given as a file.
    """
    teacher = cfg["teacher"]["name"] if needs_teacher(cfg) else ""
    found = yardsticks().get((teacher, cfg["student"]["name"], cfg["method"]["name"]))
    return found if found and not cfg["plus"] and _same_experiment(cfg, teacher) else None


def _same_experiment(cfg: dict[str, Any], teacher: str) -> bool:
    data, told = cfg["dataset"], cfg["teacher"]
    alike = [
        (data["source"], "cifar100"),
        (data["val_fraction"], 0),
        (data["normalize"], True),
        (data["flip"], True),
        (data["crop_padding"], 4),
        (data["padding_mode"], "zero"),
        (cfg["noise"]["name"], "none"),
        (cfg["imbalance"]["name"], "none"),
        (cfg["student"]["source"], "cifar"),
        (cfg["trainer"]["max_batches"], None),
        (cfg["recipe"], _recipe(cfg["student"]["name"])),
        (cfg["method"], _defaults(cfg["method"]["name"])),
    ]
    if teacher:
        alike += [(told["source"], "cifar"), (told["shuffle"], "none")]
        alike += [] if told["checkpoint"] else [(told["recipe"], _recipe(teacher))]
    return all(ours == theirs for ours, theirs in alike)


def _recipe(network: str) -> dict[str, Any]:
    recipe = content("recipe/crd240")
    return {**recipe, "lr": _SLOW.get(network, recipe["lr"])}


@lru_cache
def _defaults(method: str) -> dict[str, Any]:
    options: dict[str, Any] = from_overrides([f"method={method}"])["method"]
    return options

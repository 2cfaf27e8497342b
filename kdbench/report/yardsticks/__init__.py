"""Published values, shown beside our own where the experiment is the same.

`*.csv`, a line per value: teacher (empty for a network alone), student, method, test accuracy in %, protocol (`last
epoch` or `best epoch on test`), number of runs (empty where the source does not state it) and source. All are CIFAR-100
with the 240 epochs of recipe=crd240.
"""

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.config.groups import content, header, method_options
from kdbench.config.overrides import from_overrides
from kdbench.records.identity import needs_teacher


class Yardstick(NamedTuple):
    """A published test accuracy and how it was obtained.

    Attributes:
        accuracy: a fraction.
        protocol: `last epoch` or `best epoch on test`.
        runs: number of runs; None where the source does not state it.
        source: the publication.
    """

    accuracy: float
    protocol: str
    runs: int | None
    source: str


@lru_cache
def yardsticks() -> dict[tuple[str, str, str], Yardstick]:
    """All published values by (teacher, student, method); teacher is empty for a network alone."""
    values = {}
    for path in sorted(Path(__file__).parent.glob("*.csv")):
        with path.open(newline="") as handle:
            for row in csv.DictReader(handle):
                runs = int(row["runs"]) if row["runs"] else None
                value = Yardstick(float(row["accuracy"]) / 100, row["protocol"], runs, row["source"])
                values[row["teacher"], row["student"], row["method"]] = value
    return values


def published(cfg: dict[str, Any]) -> Yardstick | None:
    """The published value of a run's experiment; None where there is none, or where the run departs from it.

    The experiment is the same if these are: data (all 50,000 images, no noise, no imbalance), networks, method with its
    default options, recipe crd240 to its end, and a teacher that was trained likewise or comes from a file.
    """
    teacher = cfg["teacher"]["name"] if needs_teacher(cfg) else ""
    value = yardsticks().get((teacher, cfg["student"]["name"], cfg["method"]["name"]))
    return value if value and not cfg["plus"] and _same_experiment(cfg, teacher) else None


def _same_experiment(cfg: dict[str, Any], teacher: str) -> bool:
    data, options = cfg["dataset"], cfg["teacher"]
    pairs = [
        (data["source"], "cifar100"),
        (data["val_fraction"], 0),
        (data["normalize"], True),
        (data["flip"], True),
        (data["crop_padding"], 4),
        (data["padding_mode"], "zero"),
        (cfg["noise"]["name"], "none"),
        (cfg["imbalance"]["name"], "none"),
        (cfg["student"]["source"], "cifar"),
        (cfg["student"].get("kwargs", {}), {}),
        (cfg["trainer"]["max_batches"], None),
        (cfg["recipe"], _recipe(cfg["student"]["name"])),
        (method_options(cfg["method"]), _defaults(cfg["method"]["name"])),
    ]
    if teacher:
        pairs += [(options["source"], "cifar"), (options.get("kwargs", {}), {}), (options["shuffle"], "none")]
        pairs += [] if options["checkpoint"] else [(options["recipe"], _recipe(teacher))]
    return all(ours == theirs for ours, theirs in pairs)


def _recipe(network: str) -> dict[str, Any]:
    recipe = content("recipe/crd240")
    return {**recipe, "lr": recipe["lr"].get(network, recipe["lr"]["default"])}


@lru_cache
def _defaults(method: str) -> dict[str, Any]:
    # the header names the options behind the published values where they are not the defaults
    published = [f"method.{override}" for override in header(f"method/{method}")["published"].split()]
    return method_options(from_overrides([f"method={method}", *published])["method"])

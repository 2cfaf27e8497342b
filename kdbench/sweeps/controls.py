"""What a method must beat: the same runs with a teacher that knows nothing, or whose answers belong to other images."""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdbench.config.groups import header
from kdbench.config.networks import network_options
from kdbench.config.overrides import from_overrides
from kdbench.errors import UserError
from kdbench.records.identity import needs_teacher
from kdbench.report.statistics import interval
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct

_POOR = 0.1  # of its training, for a poor teacher


class Comparison(NamedTuple):
    """Test accuracies by seed, and how much better the method is, paired by seed.

    Attributes:
        name: of the control.
        accuracies: of the control, fractions.
        gain: mean of method minus control, in percentage points.
        half_width: of its 95 % t interval; None for one seed.
        verdict: `yes`, `no` (the control is better), or `not resolved`.
    """

    name: str
    accuracies: list[float]
    gain: float
    half_width: float | None
    verdict: str


class Controlled(NamedTuple):
    """A method held against its controls.

    Attributes:
        method: its name.
        accuracies: its test accuracies by seed, fractions.
        controls: what it was held against.
    """

    method: str
    accuracies: list[float]
    controls: list[Comparison]


def controls_of(cfg: Mapping[str, Any]) -> dict[str, list[str]]:
    """Overrides, by what they control for, that make a control of the run that `cfg` describes.

    For every method the student alone and label smoothing. For a method with a teacher: a teacher with random weights,
    one that was stopped early, answers to other images of the batch or of the class, a teacher of the student's own
    kind. Further ones stand in the header of the method's YAML.
    """
    name, epochs = cfg["method"]["name"], cfg["teacher"]["recipe"]["epochs"]
    controls = {"student alone": ["method=ce"], "label smoothing": ["method=ls"]}
    if needs_teacher(cfg):
        poor = max(1, round(_POOR * epochs))
        if not cfg["teacher"]["checkpoint"]:
            controls |= {
                "teacher with random weights": ["teacher.recipe.stop_after=0"],
                f"teacher stopped at epoch {poor}": [f"teacher.recipe.stop_after={poor}"],
            }
        controls |= {
            "answers shuffled in the batch": ["teacher.shuffle=batch"],
            "answers shuffled in the class": ["teacher.shuffle=class"],
        }
        if not cfg["teacher"]["checkpoint"] and network_options(cfg["teacher"]) != network_options(cfg["student"]):
            controls["teacher of the student's kind"] = ["teacher=self"]
    for line in header(f"method/{name}")["control"]:
        what, _, overrides = line.partition(": ")
        controls[what] = overrides.split()
    return {what: overrides for what, overrides in controls.items() if overrides != [f"method={name}"]}


def compare(name: str, method: list[float], control: list[float]) -> Comparison:
    """Method against control, test accuracies paired by seed."""
    gains = [100 * (a - b) for a, b in zip(method, control, strict=True)]
    mean = statistics.mean(gains)
    around = interval(gains)
    if around.high is None:
        return Comparison(name, control, mean, None, "not resolved")
    verdict = "not resolved" if around.contains_zero else "yes" if mean > 0 else "no"
    return Comparison(name, control, mean, around.high - mean, verdict)


def run_controls(overrides: list[str], seeds: list[int]) -> Controlled:
    """Conduct a method and its controls for every seed.

    Options of the method itself are left out where the control is another method.

    Raises:
        UserError: a method without controls, or a run that is not possible.
        RunFailed: a run failed.
    """
    cfg = from_overrides(overrides)
    name = cfg["method"]["name"]
    if name == "ce":
        raise UserError("method=ce is the student alone: there is nothing to control for")

    def accuracies(changed: list[str]) -> list[float]:
        groups = tuple(f"{word.partition('=')[0]}=" for word in changed if "." not in word.partition("=")[0])
        own = ("method.",) if "method=" in groups else ()
        kept = [word for word in overrides if not word.startswith((*groups, *own))]
        records = [conduct(spec_of([*kept, *changed, f"seed={seed}"])) for seed in seeds]
        return [record.finished["test"]["accuracy"] for record in records]

    method = accuracies([])
    controls = [compare(what, method, accuracies(changed)) for what, changed in controls_of(cfg).items()]
    return Controlled(name, method, controls)

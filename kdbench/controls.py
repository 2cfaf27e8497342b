"""What a method must beat: the same runs with a teacher that knows nothing, or whose answers belong to other images."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from kdbench.config import composed
from kdbench.console import console
from kdbench.errors import UserError
from kdbench.experiment import conduct
from kdbench.files import write_json
from kdbench.report.statistics import interval
from kdbench.run import needs_teacher

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


def controls_of(cfg: dict[str, Any]) -> dict[str, list[str]]:
    """Overrides, by what they control for, that make a control of the run that `cfg` describes.

    A method with a teacher: the student alone, label smoothing, a teacher with random weights, one that was stopped
    early, answers to other images of the batch or of the class, a teacher of the student's own kind. A lightweight
    teacher: another class map, and the distributions made by hand. And plain KD, where the method is built on it.
    """
    name, epochs = cfg["method"]["name"], cfg["teacher"]["recipe"]["epochs"]
    found = {"student alone": ["method=ce"], "label smoothing": ["method=ls"]}
    if needs_teacher(cfg):
        poor = max(1, round(_POOR * epochs))
        if not cfg["teacher"]["checkpoint"]:
            found |= {
                "teacher with random weights": ["teacher.recipe.stop_after=0"],
                f"teacher stopped at epoch {poor}": [f"teacher.recipe.stop_after={poor}"],
            }
        found |= {
            "answers shuffled in the batch": ["teacher.shuffle=batch"],
            "answers shuffled in the class": ["teacher.shuffle=class"],
        }
        if not cfg["teacher"]["checkpoint"] and cfg["teacher"]["name"] != cfg["student"]["name"]:
            found["teacher of the student's kind"] = ["teacher=self"]
    if "synthetic" in cfg["method"]["needs"]:
        found |= {"another class map": ["method.synthetic.map_seed=1"], "targets by hand": ["method=tfkd_reg"]}
    if name in ("skd", "lwkd"):
        found["kd"] = ["method=kd"]
    return {what: words for what, words in found.items() if words != [f"method={name}"]}


def compare(name: str, method: list[float], control: list[float]) -> Comparison:
    """Method against control, test accuracies paired by seed."""
    gains = [100 * (a - b) for a, b in zip(method, control, strict=True)]
    mean = statistics.mean(gains)
    found = interval(gains)
    if found.high is None:
        return Comparison(name, control, mean, None, "not resolved")
    verdict = "not resolved" if found.holds_zero else "yes" if mean > 0 else "no"
    return Comparison(name, control, mean, found.high - mean, verdict)


def main(overrides: list[str], seeds: list[int], json_path: str | None) -> int:
    """Conduct method and controls for every seed, print the table; returns the exit code.

    Options of the method itself are left out where the control is another method.

    Raises:
        UserError: a method without controls, or a run that cannot be.
        RunFailed: a run failed.
    """
    cfg, _ = composed(overrides)
    name = cfg["method"]["name"]
    if name == "ce":
        raise UserError("method=ce is the student alone: there is nothing to control for")

    def accuracies(words: list[str]) -> list[float]:
        groups = tuple(f"{word.partition('=')[0]}=" for word in words if "." not in word.partition("=")[0])
        own = ("method.",) if any(group == "method=" for group in groups) else ()
        kept = [word for word in overrides if not word.startswith((*groups, *own))]
        found = []
        for seed in seeds:
            result = conduct(composed([*kept, *words, f"seed={seed}"])[0]).result()
            assert result is not None
            found.append(result["test"]["accuracy"])
        return found

    method = accuracies([])
    rows = [compare(what, method, accuracies(words)) for what, words in controls_of(cfg).items()]
    table = Table(title=f"{' '.join(overrides)}: test accuracy in %, mean ± std of {len(seeds)} seeds")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column(f"{name} is better by", justify="right")
    table.add_column(f"does {name} beat it?")
    table.add_row(name, _spread(method), "", "")
    for row in rows:
        gain = f"{row.gain:+.2f}" + ("" if row.half_width is None else f" ± {row.half_width:.2f}")
        table.add_row(row.name, _spread(row.accuracies), gain, row.verdict)
    console.print(table)
    console.print("differences are paired by seed, with 95 % t intervals; an interval that holds 0 resolves nothing")
    if json_path:
        figures = {"method": name, "accuracies": method, "controls": [row._asdict() for row in rows]}
        write_json(Path(json_path), figures)
    return 0


def _spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean

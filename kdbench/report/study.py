"""One metric of a set of runs: means, intervals, differences paired by seed, ranks, published values."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from kdbench.errors import UserError
from kdbench.report import statistics
from kdbench.report.collect import ANY, NULL
from kdbench.report.grouping import Grouping, agrees, match_keys, on_teacher
from kdbench.report.metrics import Metric
from kdbench.report.yardsticks import published

# what a paper would have printed that looked at the test set to choose; shown with that mark and used for nothing
BOTH = "same/clean"
ON_TEST = {"best_epoch": "best_on_test/accuracy", "best_member": "members/best/accuracy"}


class Plan(NamedTuple):
    """What is asked of the runs.

    Attributes:
        metric: what is compared.
        grouping: which runs make a row.
        baseline: the method that every other is held against.
        interval: `t` or `bca`.
        test: `t` or `wilcoxon`.
    """

    metric: Metric
    grouping: Grouping
    baseline: str
    interval: str
    test: str


class Study(NamedTuple):
    """What came out.

    Attributes:
        plan: what was asked.
        summary: a row a contender and setting; values as in the records, not in %. Columns: the keys,
            `teacher.condition`, `n mean std low high`; against the baseline `pairs gain gain_low gain_high p p_holm
            resolvable verdict`; then `teacher_accuracy published published_protocol published_runs published_source
            best_epoch best_member`.
        ranks: `contender rank settings win tie loss`, best first; empty below two settings or two contenders.
        friedman: p that all contenders rank alike.
        unranked: contenders that lack a setting.
        runs: the frame behind `summary`, with the column `row` that says which of its rows a run is in.
        missing: names of the runs without the metric.
    """

    plan: Plan
    summary: pd.DataFrame
    ranks: pd.DataFrame
    friedman: float | None
    unranked: list[str]
    runs: pd.DataFrame
    missing: list[str]


def study(runs: pd.DataFrame, pool: pd.DataFrame, plan: Plan) -> Study:
    """Compare runs.

    Args:
        runs: those that make the rows.
        pool: those among which the baseline's are found.
        plan: what is asked.

    Raises:
        UserError: no run has the metric, two runs of a row agree in all keys, or the baseline is not one contender.
    """
    name = plan.metric.name
    values = runs[name] if name in runs else pd.Series(float("nan"), runs.index)
    missing = list(runs.loc[values.isna(), "name"])
    runs = runs.loc[values.notna()].copy()
    if runs.empty:
        raise UserError(f"--metric {name}: none of these {len(missing)} runs has it, {missing[0]} for one")
    rows = []
    runs["row"] = -1
    partners = Partners(pool, plan)
    groups = sorted(runs.groupby(plan.grouping.keys, sort=False), key=lambda found: _order(found[0], found[1], plan))
    for number, (values_of_keys, group) in enumerate(groups):
        _refuse_twins(group, plan.grouping.over)
        runs.loc[group.index, "row"] = number
        rows.append({**dict(zip(plan.grouping.keys, values_of_keys, strict=True)), **_row(group, partners, plan)})
    summary = pd.DataFrame(rows)
    summary["p_holm"] = pd.Series(statistics.holm([row["p"] for row in rows]), dtype=float)
    summary = summary.astype(dict.fromkeys(_NUMBERS, float))
    return Study(plan, summary, *_ranks(summary, plan), runs, missing)


_NUMBERS = [
    "mean", "std", "low", "high", "gain", "gain_low", "gain_high", "p", "p_holm", "resolvable", "teacher_accuracy",
    "published", *ON_TEST,
]  # fmt: skip


def _order(values: tuple[Any, ...], group: pd.DataFrame, plan: Plan) -> tuple[Any, ...]:
    """By setting, none first and numbers by size; within it the baseline, then the best first."""
    named = dict(zip(plan.grouping.keys, values, strict=True))
    setting = [natural(named[key]) for key in plan.grouping.setting if not on_teacher(key)]
    mean = group[plan.metric.name].mean()
    own = [natural(named[key]) for key in plan.grouping.setting if on_teacher(key)]
    return setting, named.get("method") != plan.baseline, -mean if plan.metric.higher else mean, own


def natural(value: Any) -> tuple[Any, ...]:
    """Sort key of a word as people count: none, longtail5, longtail20."""
    parts = re.split(r"(\d+\.?\d*)", str(value))
    return (value not in ("none", ANY, NULL), [float(part) if i % 2 else part for i, part in enumerate(parts)])


def _refuse_twins(group: pd.DataFrame, over: list[str]) -> None:
    twins = group[group.duplicated(over, keep=False)]
    if len(twins):
        first, second = twins["record"].iloc[0], twins["record"].iloc[1]
        raise UserError(
            f"{first.directory.name} and {second.id} agree in every key, {' and '.join(over)} too, but are two runs: "
            "a file that they read has changed; move one of them away, or choose with id=..."
        )


class Partners:
    """The baseline's run beside a run: same data, student, recipe and seed, and teacher if both have one."""

    def __init__(self, pool: pd.DataFrame, plan: Plan) -> None:
        self.always, self.teacher = match_keys(pool)
        self.metric, self.name = plan.metric.name, plan.baseline
        self.known: dict[tuple[Any, ...], list[Any]] = {}
        base = pool[pool["method"] == plan.baseline]
        if self.metric in base:
            for run in base[base[self.metric].notna()].to_dict("records"):
                self.known.setdefault(tuple(run[key] for key in self.always), []).append(run)

    def of(self, run: dict[str, Any]) -> float | None:
        """The baseline's value beside a run, or None where it has no such run.

        Raises:
            UserError: there are several.
        """
        mine = [run[key] for key in self.teacher]
        same_data = self.known.get(tuple(run[key] for key in self.always), [])
        found = [each for each in same_data if agrees(mine, [each[key] for key in self.teacher])]
        if len(found) > 1:
            raise UserError(
                f"--baseline {self.name} is not one contender: {found[0]['name']} is {found[0]['id']} and "
                f"{found[1]['id']}; choose between them with a filter on method.* or teacher.*"
            )
        return float(found[0][self.metric]) if found else None


def _row(group: pd.DataFrame, partners: Partners, plan: Plan) -> dict[str, Any]:
    values = group[plan.metric.name]
    low, high = statistics.interval(values, plan.interval)
    return {
        "teacher.condition": _condition(group),
        "n": len(group),
        "mean": values.mean(),
        "std": values.std(ddof=1),
        "low": low,
        "high": high,
        **_against(group, partners, plan),
        "teacher_accuracy": _mean(group, "teacher/test_accuracy") if plan.metric.name == "test/accuracy" else None,
        **_published(group, plan.metric.name),
        **{
            key: _mean(group, column) if plan.metric.name == "test/accuracy" else None
            for key, column in ON_TEST.items()
        },
    }


def _condition(group: pd.DataFrame) -> str:
    said = sorted(set(group["teacher.condition"]) - {ANY})
    if said:
        return "/".join(said)
    # no noise and no imbalance: a teacher trained on the student's data was trained on clean data
    return BOTH if (group["teacher.seed"] != ANY).any() else ANY


def _against(group: pd.DataFrame, partners: Partners, plan: Plan) -> dict[str, Any]:
    keys = "pairs gain gain_low gain_high p resolvable verdict".split()
    if (group["method"] == plan.baseline).all():
        return {**dict.fromkeys(keys), "pairs": 0, "verdict": ""}
    beside = [(run[plan.metric.name], partners.of(run)) for run in group.to_dict("records")]
    gains = [ours - theirs for ours, theirs in beside if theirs is not None]
    found = statistics.interval(gains, plan.interval)
    verdict = ""
    if gains and found.holds_zero is not None:
        better = (sum(gains) > 0) == plan.metric.higher
        verdict = "tie" if found.holds_zero else "win" if better else "loss"
    return {
        "pairs": len(gains),
        "gain": sum(gains) / len(gains) if gains else None,
        "gain_low": found.low,
        "gain_high": found.high,
        "p": statistics.p_value(gains, plan.test),
        "resolvable": statistics.resolvable(gains),
        "verdict": verdict,
    }


def _published(group: pd.DataFrame, metric: str) -> dict[str, Any]:
    found = {published(record.config) for record in group["record"]} if metric == "test/accuracy" else set()
    value = found.pop() if len(found) == 1 else None
    return {
        "published": value and value.accuracy,
        "published_protocol": value and value.protocol,
        "published_runs": value and value.runs,
        "published_source": value and value.source,
    }


def _mean(group: pd.DataFrame, column: str) -> float | None:
    """Of a column that all runs of the row have; what only some have is not filled in."""
    return None if column not in group or group[column].isna().any() else float(group[column].mean())


# ------------------------------------------------------------------------------------------- over settings


def contender_of(row: dict[str, Any], grouping: Grouping) -> str:
    """What a row compares, in words: `kd`, `kd, method.temperature=2`."""
    words = [row[key] if key == "method" else f"{key}={row[key]}" for key in grouping.contender if row[key] != NULL]
    return ", ".join(str(word) for word in words)


def settings_of(summary: pd.DataFrame, keys: list[str]) -> list[tuple[Any, ...]]:
    """Values of these keys in order of appearance; one without meaning in a key is part of those that agree with it."""
    every = list(dict.fromkeys(tuple(row[key] for key in keys) for row in summary.to_dict("records")))
    return [one for one in every if not any(agrees(one, other) and _vaguer(one, other) for other in every)]


def _vaguer(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return sum(value == ANY for value in one) > sum(value == ANY for value in other)


def cells(summary: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every (setting by these keys, row); a row without a teacher is in the settings of every teacher."""
    settings = settings_of(summary, keys)
    for row in summary.to_dict("records"):
        own = [row[key] for key in keys]
        for setting in settings:
            if agrees(own, setting):
                yield setting, row


def matrix(summary: pd.DataFrame, grouping: Grouping, column: str) -> pd.DataFrame:
    """A column of the summary as settings x contenders; what was not run is nan."""
    found: dict[str, dict[int, Any]] = {}
    settings = settings_of(summary, grouping.setting)
    for setting, row in cells(summary, grouping.setting):
        found.setdefault(contender_of(row, grouping), {})[settings.index(setting)] = row[column]
    return pd.DataFrame(found, index=range(len(settings)))


def _ranks(summary: pd.DataFrame, plan: Plan) -> tuple[pd.DataFrame, float | None, list[str]]:
    """Average ranks of the contenders that have every setting."""
    means = matrix(summary, plan.grouping, "mean").astype(float)
    complete = means.dropna(axis="columns")
    unranked = [name for name in means if name not in complete]
    if complete.shape[0] < 2 or complete.shape[1] < 2:
        return pd.DataFrame(), None, unranked
    verdicts = matrix(summary, plan.grouping, "verdict")
    table = pd.DataFrame(
        {
            "contender": complete.columns,
            "rank": statistics.average_ranks(complete, plan.metric.higher),
            "settings": len(complete),
            **{each: [int((verdicts[name] == each).sum()) for name in complete] for each in ("win", "tie", "loss")},
        }
    )
    return table.sort_values("rank", ignore_index=True), statistics.friedman(complete), unranked

"""One metric of a set of runs: means, intervals, differences from a baseline, ranks, published values."""

import re
from typing import Any, NamedTuple

import pandas as pd

from kdbench.errors import UserError
from kdbench.report import statistics
from kdbench.report.collect import ANY, NULL
from kdbench.report.grouping import Grouping, on_teacher
from kdbench.report.metrics import Metric
from kdbench.report.pairing import BaselineRuns
from kdbench.report.settings import matrix
from kdbench.report.yardsticks import published

# condition of the teacher where the student's data are clean, so that both conditions are the same run
BOTH_CONDITIONS = "same/clean"
# columns with what was selected on the test set: shown with a mark, used for nothing
SELECTED_ON_TEST = {"best_epoch": "best_on_test/accuracy", "best_member": "members/best/accuracy"}
# columns shown beside the test accuracy only
_BESIDE = [
    "teacher_accuracy", "published", "published_protocol", "published_runs", "published_source", *SELECTED_ON_TEST,
]  # fmt: skip
_FLOATS = [
    "mean", "std", "low", "high", "gain", "gain_low", "gain_high", "p", "p_holm", "resolvable", "teacher_accuracy",
    "published", *SELECTED_ON_TEST,
]  # fmt: skip


class Plan(NamedTuple):
    """How to compare the runs.

    Attributes:
        metric: what is compared.
        grouping: which runs form a row.
        baseline: the method that all others are compared with.
        interval: kind of confidence interval, `t` or `bca`.
        test: paired test, `t` or `wilcoxon`.
    """

    metric: Metric
    grouping: Grouping
    baseline: str
    interval: str
    test: str


class Study(NamedTuple):
    """The comparison of runs by one metric.

    Attributes:
        plan: how they were compared.
        summary: a row per contender and setting; values as in the records, not in %. Columns: the keys,
            `teacher.condition`, `n mean std low high`; against the baseline `pairs gain gain_low gain_high p p_holm
            resolvable verdict`, where `resolvable` is the minimum detectable difference; then `teacher_accuracy
            published published_protocol published_runs published_source best_epoch best_member`.
        ranks: `contender rank settings win tie loss`, best first; empty below two settings or two contenders.
        friedman: p value of the Friedman test; None where it is undefined.
        unranked: contenders that were not run in every setting.
        runs: the frame behind `summary`; its column `row` is the number of the run's row there.
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
        runs: those in the table, from `collect`.
        pool: those among which runs of the baseline are looked for.
        plan: how to compare them.

    Raises:
        UserError: no run has the metric, two runs of a row agree in all keys, or the baseline is ambiguous.
    """
    name = plan.metric.name
    values = runs[name] if name in runs else pd.Series(float("nan"), runs.index)
    missing = list(runs.loc[values.isna(), "name"])
    runs = runs.loc[values.notna()].copy()
    if runs.empty:
        raise UserError(f"--metric {name}: none of these {len(missing)} runs has it, for example {missing[0]}")
    baseline = BaselineRuns(pool, plan.baseline, name)
    rows = []
    runs["row"] = -1
    groups = [group for _, group in runs.groupby(plan.grouping.keys, sort=False)]
    for number, group in enumerate(sorted(groups, key=lambda group: _position(group, plan))):
        _refuse_duplicates(group, plan.grouping.over)
        runs.loc[group.index, "row"] = number
        rows.append({**{key: group[key].iloc[0] for key in plan.grouping.keys}, **_row(group, baseline, plan)})
    summary = pd.DataFrame(rows)
    summary["p_holm"] = pd.Series(statistics.holm([row["p"] for row in rows]), dtype=float)
    summary = summary.astype(dict.fromkeys(_FLOATS, float))
    return Study(plan, summary, *_ranks(summary, plan), runs, missing)


def _position(group: pd.DataFrame, plan: Plan) -> tuple[Any, ...]:
    """Sort key of a row: by setting; within a setting the baseline first, then the best mean first."""
    keys = group[plan.grouping.keys].iloc[0].to_dict()
    setting = [_natural(keys[key]) for key in plan.grouping.setting if not on_teacher(key)]
    teacher = [_natural(keys[key]) for key in plan.grouping.setting if on_teacher(key)]
    mean = group[plan.metric.name].mean()
    return setting, keys.get("method") != plan.baseline, -mean if plan.metric.higher else mean, teacher


def _natural(value: Any) -> tuple[Any, ...]:
    """Sort key of a value in natural order: none, longtail5, longtail20."""
    parts = re.split(r"(\d+\.?\d*)", str(value))
    return (value not in ("none", ANY, NULL), [float(part) if i % 2 else part for i, part in enumerate(parts)])


def _refuse_duplicates(group: pd.DataFrame, over: list[str]) -> None:
    duplicates = group[group.duplicated(over, keep=False)]
    if len(duplicates):
        first, second = duplicates["record"].iloc[0], duplicates["record"].iloc[1]
        raise UserError(
            f"{first.directory.name} and {second.id} are different runs that agree in every key, including "
            f"{' and '.join(over)}: a file that they read has changed, or they were made by different versions of "
            "kdbench; move one of them away, or choose with id=..."
        )


def _row(group: pd.DataFrame, baseline: BaselineRuns, plan: Plan) -> dict[str, Any]:
    values = group[plan.metric.name]
    low, high = statistics.interval(values, plan.interval)
    return {
        "teacher.condition": _teacher_condition(group),
        "n": len(group),
        "mean": values.mean(),
        "std": values.std(ddof=1),
        "low": low,
        "high": high,
        **_difference(group, baseline, plan),
        **_accuracies_beside(group, plan.metric.name),
    }


def _teacher_condition(group: pd.DataFrame) -> str:
    if conditions := sorted(set(group["teacher.condition"]) - {ANY}):
        return "/".join(conditions)
    return BOTH_CONDITIONS if (group["teacher.seed"] != ANY).any() else ANY


def _difference(group: pd.DataFrame, baseline: BaselineRuns, plan: Plan) -> dict[str, Any]:
    """Paired differences of a row's runs from the baseline's."""
    if (group["method"] == plan.baseline).all():
        columns = "pairs gain gain_low gain_high p resolvable verdict".split()
        return {**dict.fromkeys(columns), "pairs": 0, "verdict": ""}
    pairs = [(run[plan.metric.name], baseline.value_beside(run)) for run in group.to_dict("records")]
    gains = [value - other for value, other in pairs if other is not None]
    interval = statistics.interval(gains, plan.interval)
    verdict = ""
    if interval.contains_zero is not None:
        better = (sum(gains) > 0) == plan.metric.higher
        verdict = "tie" if interval.contains_zero else "win" if better else "loss"
    return {
        "pairs": len(gains),
        "gain": sum(gains) / len(gains) if gains else None,
        "gain_low": interval.low,
        "gain_high": interval.high,
        "p": statistics.p_value(gains, plan.test),
        "resolvable": statistics.minimum_detectable_difference(gains),
        "verdict": verdict,
    }


def _accuracies_beside(group: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Accuracies shown beside the test accuracy: the teacher's, a published one, those selected on the test set."""
    beside: dict[str, Any] = dict.fromkeys(_BESIDE)
    if metric == "test/accuracy":
        beside["teacher_accuracy"] = _mean(group, "teacher/test_accuracy")
        beside |= {key: _mean(group, column) for key, column in SELECTED_ON_TEST.items()}
        values = {published(record.config) for record in group["record"]}
        if len(values) == 1 and (value := values.pop()):
            beside |= {"published": value.accuracy, "published_protocol": value.protocol,
                       "published_runs": value.runs, "published_source": value.source}  # fmt: skip
    return beside


def _mean(group: pd.DataFrame, column: str) -> float | None:
    """Mean of a column that all runs of the row have; None if any run lacks it."""
    return None if column not in group or group[column].isna().any() else float(group[column].mean())


def _ranks(summary: pd.DataFrame, plan: Plan) -> tuple[pd.DataFrame, float | None, list[str]]:
    """Average ranks of the contenders that were run in every setting.

    Returns:
        `ranks`, `friedman` and `unranked` of a `Study`.
    """
    means = matrix(summary, plan.grouping, "mean").astype(float)
    complete = means.dropna(axis="columns")
    unranked = [name for name in means if name not in complete]
    if complete.shape[0] < 2 or complete.shape[1] < 2:
        return pd.DataFrame(), None, unranked
    verdicts = matrix(summary, plan.grouping, "verdict")
    ranks = pd.DataFrame(
        {
            "contender": complete.columns,
            "rank": statistics.average_ranks(complete, plan.metric.higher),
            "settings": len(complete),
            **{word: [int((verdicts[name] == word).sum()) for name in complete] for word in ("win", "tie", "loss")},
        }
    )
    return ranks.sort_values("rank", ignore_index=True), statistics.friedman(complete), unranked

"""Notes below a table: how it was computed, what splits its rows, what is missing from it."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from kdbench.report.study import BOTH_CONDITIONS, SELECTED_ON_TEST, Study
from kdbench.report.tables import known

_INTERVALS = {
    "t": "Student's t",
    "bca": "BCa bootstrap with 9,999 resamples, too narrow for fewer than about 10 runs",
}
_TESTS = {
    "t": "paired t test",
    "wilcoxon": "Wilcoxon signed-rank test, whose p value cannot fall below 0.05 with 5 or fewer pairs",
}
_NAMES_SHOWN = 5
# Metrics that are better for a run whose teacher need not compute its answers.
_COSTS = tuple(f"cost/{name}" for name in ("train_seconds", "total_seconds", "images_per_second", "peak_memory_bytes"))


def counted(count: int, noun: str) -> str:
    """A number and its noun: `1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _NAMES_SHOWN} more" if len(every) > _NAMES_SHOWN else ""
    return ", ".join(every[:_NAMES_SHOWN]) + more


def notes(study: Study) -> list[str]:
    """Lines below the main table of a study."""
    plan, summary = study.plan, study.summary
    over = " and ".join(plan.grouping.over)
    lines = [
        f"mean ± standard deviation over {over}; 95 % CI: 95 % confidence interval, {_INTERVALS[plan.interval]}",
        *_notes_on_pairs(study, over),
    ]
    if plan.grouping.split:
        lines.append(f"rows are split by {', '.join(plan.grouping.split)}, in which the runs differ")
    if (summary["teacher.condition"] == BOTH_CONDITIONS).any():
        lines.append(f"teacher.condition {BOTH_CONDITIONS}: without noise and imbalance, both are the same run")
    for n, problem in (
        (1, "no standard deviation and no confidence interval"),
        (2, "a confidence interval from two runs says little"),
    ):
        if count := int((summary["n"] == n).sum()):
            lines.append(f"n = {n} in {counted(count, 'row')}: {problem}")
    if summary["published"].notna().any():
        rows = summary[summary["published"].notna()].to_dict("records")
        lines.append(f"published: {'; '.join(sorted({_source(row) for row in rows}))}")
    if summary[list(SELECTED_ON_TEST)].notna().any(axis=None):
        lines.append(
            "* selected on test data and so not comparable: what a paper that reports its best test accuracy would "
            "print; used for nothing else here"
        )
    if plan.metric.name in _COSTS and (note := note_on_answers(study)):
        lines.append(note)
    if study.missing:
        missing = f"{counted(len(study.missing), 'run')} ({listed(study.missing)})"
        lines.append(f"not in the table, because without {plan.metric.name}: {missing}")
    if (versions := study.runs["torch"].nunique()) > 1:
        lines.append(f"the runs were made with {versions} versions of torch")
    if (states := study.runs["kdbench"].nunique()) > 1:
        lines.append(f"the runs were made with {states} versions of kdbench's code; --strict refuses this")
    return lines


def note_on_answers(study: Study) -> str | None:
    """That some runs have read answers of their teachers, which makes them cheaper; None if none has."""
    read = "cost/teacher_answers_read"
    count = int((study.runs[read] > 0).sum()) if read in study.runs else 0
    if not count:
        return None
    return (
        f"costs are not comparable: {count} of {counted(len(study.runs), 'run')} read answers of the teacher that were "
        "kept instead of computing them (teacher.cache=never computes them all)"
    )


def _notes_on_pairs(study: Study, over: str) -> list[str]:
    plan, summary = study.plan, study.summary
    compared = summary[summary["method"] != plan.baseline]
    if compared.empty:
        return []
    if not compared["pairs"].sum():
        return [f"no gains: no {plan.baseline} run has the same data, student, recipe and {over} as any of these runs"]
    lines = [
        f"compared with {plan.baseline}: paired runs agree in {over}, data, noise, imbalance, student and recipe, and "
        "in the teacher if both have one"
    ]
    if tests := int(summary["p"].notna().sum()):
        lines.append(
            f"p: two-sided {_TESTS[plan.test]}; p (Holm): after Holm correction over {counted(tests, 'test')}, all "
            "those in this table"
        )
    if summary["resolvable"].notna().any():
        lines.append(
            "minimum detectable difference: the true difference that a paired t test (5 % level, uncorrected) detects "
            "with 80 % power, given the number of pairs and their spread; smaller ones often go undetected"
        )
    if unpaired := int((compared["pairs"] < compared["n"]).sum()):
        lines.append(
            f"fewer pairs than runs in {counted(unpaired, 'row')}: runs without a {plan.baseline} run of the same "
            f"{over} are not paired"
        )
    return lines


def _source(row: dict[Any, Any]) -> str:
    runs = row["published_runs"]
    count = counted(int(runs), "run") if known(runs) else "number of runs not stated"
    return f"{row['published_source']}, {row['published_protocol']}, {count}"


def why_no_critical_difference(study: Study) -> str | None:
    """Why there is no critical-difference plot, in words for the reader; None if there is one."""
    if len(study.ranks) < 3 or int(study.ranks["settings"].iloc[0]) < 5:
        return "a critical-difference plot needs at least 3 methods, all run in at least 5 settings"
    return None if find_spec("autorank") else "pip install 'kdbench[stats]' adds a critical-difference plot to --html"


def rank_notes(study: Study) -> list[str]:
    """Lines below the table of ranks; none without ranks."""
    if study.ranks.empty:
        return []
    baseline = study.plan.baseline
    lines = [
        "average rank: of the means in each setting, 1 = best (Demšar, JMLR 7, 2006)",
        "win/tie/loss: number of settings in which the 95 % confidence interval of the paired difference favours the "
        f"method, contains 0, or favours {baseline}",
    ]
    if study.friedman is not None:
        lines.append(f"Friedman test that all methods rank equally: p = {study.friedman:.3g}")
    if study.unranked:
        lines.append(f"not ranked because not run in every setting: {'; '.join(study.unranked)}")
    if reason := why_no_critical_difference(study):
        lines.append(reason)
    return lines

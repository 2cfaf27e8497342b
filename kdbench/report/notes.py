"""What has to be said beside a table: how it was computed, what was split, what is not in it."""

from collections.abc import Iterable
from importlib.util import find_spec

from kdbench.report.study import ON_TEST, Study
from kdbench.report.tables import known

_INTERVALS = {"t": "Student's t", "bca": "bootstrap BCa of 9,999 resamples, too narrow below about 10 runs"}
_TESTS = {"t": "paired t test", "wilcoxon": "Wilcoxon's signed-rank test, which cannot fall below 0.05 with 5 pairs"}
_NAMED = 5


def some(count: int, noun: str) -> str:
    """A number of things: `1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def names(words: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    every = list(words)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def notes(study: Study) -> list[str]:
    """Lines for below the table of a study."""
    plan, summary = study.plan, study.summary
    over = " and ".join(plan.grouping.over)
    said = [f"mean ± standard deviation over {over}; 95 % intervals: {_INTERVALS[plan.interval]}"]
    compared = summary[summary["method"] != plan.baseline]
    tests = int(summary["p"].notna().sum())
    if compared["pairs"].sum():
        said.append(
            f"against {plan.baseline}: pairs agree in {over}, data, noise, imbalance, student and recipe, and in the "
            f"teacher if both have one; two-sided {_TESTS[plan.test]}, Holm correction "
            f"over {some(tests, 'test')} of this table"
        )
        said.append(
            "smallest to be found: the true difference that as many pairs find with 80 % power at their spread "
            "(paired t test at 5 %, before any correction); less cannot be told from chance"
        )
        if len(fewer := compared[compared["pairs"] < compared["n"]]):
            said.append(f"{some(len(fewer), 'row')} with fewer pairs than runs: only {over} that both have are paired")
    elif len(compared):
        said.append(f"no {plan.baseline} run has the data, student, recipe and {over} of any of these: no gains")
    if plan.grouping.split:
        said.append(f"split by {', '.join(plan.grouping.split)}, because the runs differ in it")
    if (summary["teacher.condition"] == "same/clean").any():
        said.append("teacher.condition same/clean: without noise and imbalance both are one")
    for n, what in ((1, "no spread and no interval"), (2, "an interval of two runs is hardly one")):
        if count := int((summary["n"] == n).sum()):
            said.append(f"n = {n} in {some(count, 'row')}: {what}")
    if summary["published"].notna().any():
        beside = summary[summary["published"].notna()].to_dict("records")
        sources = {
            f"{row['published_source']}, {row['published_protocol']}, "
            + (some(int(row["published_runs"]), "run") if known(row["published_runs"]) else "number of runs not stated")
            for row in beside
        }
        said.append(f"published: {'; '.join(sorted(sources))}")
    if summary[list(ON_TEST)].notna().any(axis=None):
        said.append(
            "* selected on test, not comparable: what a best-on-test paper would have printed; used for nothing here"
        )
    if study.missing:
        without = f"{some(len(study.missing), 'run')} ({names(study.missing)})"
        said.append(f"without {plan.metric.name}, and not in the table: {without}")
    if (torch := study.runs["torch"].nunique()) > 1:
        said.append(f"the runs were made with {torch} versions of torch")
    return said


def lacking(study: Study) -> str | None:
    """Why there is no critical-difference plot, in words for the reader; None where there is one."""
    if len(study.ranks) < 3 or int(study.ranks["settings"].iloc[0]) < 5:
        return "a critical-difference plot needs 3 contenders that were all run in 5 settings"
    return None if find_spec("autorank") else "pip install 'kdbench[stats]' adds a critical-difference plot to --html"


def rank_notes(study: Study) -> list[str]:
    """Lines for below the ranks."""
    said = []
    if not study.ranks.empty:
        said.append("rank 1 is best, of the means over runs in each setting; Demšar, JMLR 7 (2006)")
        said.append("win, tie, loss: the paired 95 % interval of the difference is above 0, holds it, is below")
        if study.friedman is not None:
            said.append(f"Friedman's test that all rank alike: p = {study.friedman:.3g}")
        if study.unranked:
            said.append(f"not ranked, since they lack a setting: {', '.join(study.unranked)}")
        if why := lacking(study):
            said.append(why)
    return said

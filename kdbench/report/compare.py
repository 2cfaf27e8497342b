"""From the records to tables, plots and a page."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdbench.config.rules import nearest
from kdbench.console import console, show
from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.records.record import Record, all_records
from kdbench.report import tables
from kdbench.report.collect import collect
from kdbench.report.filters import Filter, check_keys
from kdbench.report.grouping import grouping, without_teachers
from kdbench.report.metrics import metric
from kdbench.report.notes import counted, listed, notes, rank_notes
from kdbench.report.study import Plan, Study, study

_WIDTH = 240  # of tables that are not printed on a terminal


class Options(NamedTuple):
    """Options of the command line; files are paths, or `-` for the terminal."""

    filters: list[str]
    by: list[str]
    over: list[str]
    metrics: list[str]
    baseline: str
    interval: str
    test: str
    strict: bool
    html: str | None
    csv: str | None
    markdown: str | None
    latex: str | None
    plots: str | None


class Report(NamedTuple):
    """A study per metric, and the notes that hold for all of them."""

    studies: list[Study]
    notes: list[str]


def report(options: Options, outputs: Path) -> None:
    """Make the report, print it, and write the files that were asked for.

    Raises:
        UserError: an option that is not possible, nothing to report, or runs that cannot be compared.
    """
    comparison = compare(options, outputs)
    # the tables are printed unless one of these goes to the terminal
    forms: list[tuple[str | None, Callable[[], str]]] = [
        (options.csv, lambda: tables.csv(comparison.studies)),
        (options.markdown, lambda: _markdown(comparison)),
        (options.latex, lambda: _latex(comparison)),
        (options.html, lambda: _page(comparison, options)),
    ]
    paths = [path for path, _ in forms if path]
    for target in [*paths, options.plots]:
        if target and target != "-" and not Path(target).resolve().parent.is_dir():
            raise UserError(f"{target} cannot be written: there is no folder {Path(target).parent}")
    for path, form in forms:
        if path == "-":
            sys.stdout.write(form())
        elif path:
            write_text(Path(path), form())
    if options.plots:
        _write_plots(comparison, Path(options.plots))
    if "-" not in paths:
        _print(comparison)
        for path in paths:
            console.print(f"written: {path}")


def compare(options: Options, outputs: Path) -> Report:
    """Collect the runs and study every metric.

    Raises:
        UserError: as for `report`.
    """
    filters = [Filter.parse(text) for text in options.filters]
    records = list(all_records(outputs))
    check_keys(records, filters)
    # a filter on contenders must not remove the baseline, nor runs to which it does not apply
    on_data = [condition for condition in filters if not condition.selects_contenders()]
    candidates = [record for record in records if all(condition.matches(record) for condition in on_data)]
    selected = {
        record.directory for record in candidates
        if all(condition.matches(record) or not condition.applies_to(record) for condition in filters)
    }  # fmt: skip
    pool, left_out = collect(candidates)
    if pool.empty or not any(record.directory in selected for record in pool["record"]):
        raise UserError(
            f"no finished run in {outputs / 'runs'} matches (runs in any state: {len(selected)}); see kdbench runs"
        )
    if not any(condition.key == "role" for condition in filters):
        pool = without_teachers(pool, options.over)
    runs = pool[[record.directory in selected for record in pool["record"]]]
    if runs.empty:
        raise UserError("these runs only trained teachers; role=teacher,baseline,distill includes them")
    _check(options, pool)
    # filters that exclude the baseline, such as method=kd, still compare with it
    if options.strict and (states := runs["kdbench"].nunique()) > 1:
        raise UserError(
            f"the runs were made with {states} versions of kdbench's code; --strict compares runs of one only"
        )
    partners = runs if (runs["method"] == options.baseline).any() else pool
    groups = grouping(runs, options.by, options.over, options.strict)
    plans = [Plan(metric(name), groups, options.baseline, options.interval, options.test) for name in options.metrics]
    left_out = [(record, reason) for record, reason in left_out if record.directory in selected]
    return Report([study(runs, partners, plan) for plan in plans], _notes_on_left_out(left_out))


def _notes_on_left_out(left_out: list[tuple[Record, str]]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for record, reason in left_out:
        by_reason.setdefault(reason, []).append(record.directory.name)
    return [
        f"left out: {counted(len(names), 'run')} ({listed(names)}): {reason}"
        for reason, names in sorted(by_reason.items())
    ]


def _check(options: Options, pool: pd.DataFrame) -> None:
    metrics = [column for column in pool.columns if "/" in column]
    for name in options.metrics:
        if name not in metrics:
            raise UserError(f"--metric {name}: no run has it{nearest(name, metrics)}; known: {', '.join(metrics)}")
    # the default, ce, may be absent (a note then says that there are no gains); any other baseline must exist
    methods = sorted(set(pool["method"]))
    if options.baseline not in (*methods, "ce"):
        raise UserError(f"--baseline {options.baseline}: no run has this method; known: {', '.join(methods)}")


def _sections(comparison: Report) -> list[tuple[tables.Table, list[str]]]:
    """Every table of every study, with the notes below it."""
    sections = []
    for each in comparison.studies:
        sections.append((tables.main_table(each), notes(each)))
        if ranks := tables.rank_table(each):
            sections.append((ranks, rank_notes(each)))
    return sections


def _print(comparison: Report) -> None:
    for table, lines in _sections(comparison):
        show(table.rich(), _WIDTH)
        for line in lines:
            console.print(line)
    for line in comparison.notes:
        console.print(line)


def _markdown(comparison: Report) -> str:
    parts: list[str] = []
    for table, lines in _sections(comparison):
        parts += [table.markdown(), *(f"- {line}" for line in lines), ""]
    return "\n".join([*parts, *(f"- {line}" for line in comparison.notes)]).rstrip() + "\n"


def _latex(comparison: Report) -> str:
    return "\n".join(table.latex() for table, _ in _sections(comparison))


def _page(comparison: Report, options: Options) -> str:
    from kdbench.report.page import render

    return render(comparison.studies, comparison.notes, options.filters)


def _write_plots(comparison: Report, folder: Path) -> None:
    from kdbench.report.plots import plots

    folder.mkdir(exist_ok=True)
    for each in comparison.studies:
        for plot in plots(each):
            name, svg = plot.file
            write_text(folder / f"{each.plan.metric.name.replace('/', '_')}-{name}", svg)

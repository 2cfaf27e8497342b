"""From the records to tables, plots and a page."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from kdbench.config.rules import nearest
from kdbench.errors import UserError
from kdbench.files import write_text
from kdbench.records.record import Record, all_records
from kdbench.report import tables
from kdbench.report.collect import collect
from kdbench.report.filters import Filter, check_keys
from kdbench.report.grouping import grouping, without_teachers
from kdbench.report.metrics import metric
from kdbench.report.notes import names, notes, rank_notes, some
from kdbench.report.study import Plan, Study, study


class Options(NamedTuple):
    """What the command line says; files are paths or `-` for the terminal."""

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
    """A study of every metric that was asked for, and what is said once."""

    studies: list[Study]
    notes: list[str]


def report(options: Options, outputs: Path) -> None:
    """Make the report, print it, and write the files that were asked for.

    Raises:
        UserError: an option that cannot be, nothing to report, or runs that are no comparison.
    """
    made = compare(options, outputs)
    # what is written and how it is made; the terminal has the tables unless one of them goes there
    forms: list[tuple[str | None, Callable[[], str]]] = [
        (options.csv, lambda: tables.csv(made.studies)),
        (options.markdown, lambda: _markdown(made)),
        (options.latex, lambda: "\n".join(table.latex() for one in made.studies for table in _tables(one))),
        (options.html, lambda: _page(made, options)),
    ]
    for path in [*(path for path, _ in forms), options.plots]:
        if path and path != "-" and not Path(path).resolve().parent.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {Path(path).parent}")
    for path, form in forms:
        if path == "-":
            sys.stdout.write(form())
        elif path:
            write_text(Path(path), form())
    if options.plots:
        _draw(made, Path(options.plots))
    if "-" not in [path for path, _ in forms]:
        _print(made)
        for path, _ in forms:
            if path:
                print(f"written: {path}")


def _draw(report: Report, folder: Path) -> None:
    from kdbench.report.plots import plots

    folder.mkdir(exist_ok=True)
    for one in report.studies:
        for plot in plots(one):
            name, svg = plot.file
            write_text(folder / f"{one.plan.metric.name.replace('/', '_')}-{name}", svg)


def compare(options: Options, outputs: Path) -> Report:
    """Collect the runs and study every metric."""
    filters = [Filter.parse(word) for word in options.filters]
    every = list(all_records(outputs))
    check_keys(every, filters)
    about_data = [each for each in filters if not each.on_contender()]
    candidates = [record for record in every if all(each.holds(record) for each in about_data)]
    meant = [r for r in candidates if all(each.holds(r) or each.says_nothing_of(r) for each in filters)]
    shown = {record.directory for record in meant}
    pool, left_out = collect(candidates)
    if pool.empty or not any(record.directory in shown for record in pool["record"]):
        raise UserError(f"no finished run in {outputs / 'runs'} is meant, of {len(shown)} in all; see kdbench runs")
    if not any(each.key == "role" for each in filters):
        pool = without_teachers(pool, options.over)
    runs = pool[[record.directory in shown for record in pool["record"]]]
    if runs.empty:
        raise UserError("these runs only made teachers; role=teacher,baseline,distill shows them")
    _check(options, pool)
    # words that leave out the baseline, as method=kd does, still mean gains over it
    partners = runs if (runs["method"] == options.baseline).any() else pool
    grouped = grouping(runs, options.by, options.over, options.strict)
    plans = [Plan(metric(name), grouped, options.baseline, options.interval, options.test) for name in options.metrics]
    reasons = _by_reason([(record, why) for record, why in left_out if record.directory in shown])
    said = [f"left out: {some(len(who), 'run')} ({names(who)}): {why}" for why, who in reasons]
    return Report([study(runs, partners, plan) for plan in plans], said)


def _by_reason(left_out: list[tuple[Record, str]]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for record, why in left_out:
        found.setdefault(why, []).append(record.directory.name)
    return sorted(found.items())


def _check(options: Options, pool: pd.DataFrame) -> None:
    columns = [column for column in pool.columns if "/" in column]
    for name in options.metrics:
        if name not in columns:
            raise UserError(f"--metric {name}: no run has it{nearest(name, columns)}; known: {', '.join(columns)}")
    # ce may be absent: there are then no gains, which is said; what was asked for by name must be there
    methods = sorted(set(pool["method"]))
    if options.baseline not in (*methods, "ce"):
        raise UserError(f"--baseline {options.baseline}: no run of it; known: {', '.join(methods)}")


def _tables(one: Study) -> list[tables.Table]:
    return [table for table in (tables.main_table(one), tables.rank_table(one)) if table]


def _print(report: Report) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 240
    for one in report.studies:
        console.print(tables.main_table(one).rich())
        for line in notes(one):
            console.print(line)
        if ranks := tables.rank_table(one):
            console.print(ranks.rich())
            for line in rank_notes(one):
                console.print(line)
    for line in report.notes:
        console.print(line)


def _markdown(report: Report) -> str:
    parts = []
    for one in report.studies:
        parts += [tables.main_table(one).markdown(), *(f"- {line}" for line in notes(one)), ""]
        if ranks := tables.rank_table(one):
            parts += [ranks.markdown(), *(f"- {line}" for line in rank_notes(one)), ""]
    return "\n".join([*parts, *(f"- {line}" for line in report.notes)]).rstrip() + "\n"


def _page(report: Report, options: Options) -> str:
    from kdbench.report.page import render

    return render(report.studies, report.notes, options.filters)

"""One self-contained HTML page: tables that sort, plots, and the runs behind every number. It asks no network."""

from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from kdbench.report import tables
from kdbench.report.notes import notes, rank_notes
from kdbench.report.plots import plots
from kdbench.report.study import Study


def render(studies: list[Study], said: list[str], filters: list[str]) -> str:
    """The page.

    Args:
        studies: one a metric.
        said: lines on all of them, of what was left out.
        filters: words that chose the runs.
    """
    loader = PackageLoader("kdbench.report", ".")
    template = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    sections = [_section(each) for each in studies]
    return template.get_template("page.html").render(
        sections=sections, said=said, filters=" ".join(filters), version=version("kdbench")
    )


def _section(study: Study) -> dict[str, Any]:
    ranks = tables.rank_table(study)
    return {
        "metric": study.plan.metric.name,
        "runs": len(study.runs),
        "tables": [(tables.main_table(study), notes(study)), *([(ranks, rank_notes(study))] if ranks else [])],
        "missing": study.missing,
        "plots": plots(study),
        "behind": _behind(study),
    }


def _behind(study: Study) -> tables.Table:
    """The runs, so that each number can be traced to its directories."""
    metric = study.plan.metric
    rows = [
        [
            tables.Cell(str(run["row"] + 1), run["row"]),
            tables.Cell(run["name"], run["name"]),
            tables.Cell(run["id"], run["id"]),
            tables.Cell(f"{metric.scale * run[metric.name]:.{metric.digits}f}", run[metric.name]),
        ]
        for run in study.runs.sort_values(["row", "name"]).to_dict("records")
    ]
    return tables.Table(
        "The runs behind the table", ["row", "run", "id", metric.label], [True, False, False, True], rows
    )

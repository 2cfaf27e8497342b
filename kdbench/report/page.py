"""One self-contained HTML page: sortable tables, plots, and the runs behind every number. It loads nothing else."""

from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from kdbench.report import tables
from kdbench.report.notes import counted, notes, rank_notes
from kdbench.report.plots import plots
from kdbench.report.study import Study


def render(studies: list[Study], common_notes: list[str], filters: list[str]) -> str:
    """The page.

    Args:
        studies: one per metric.
        common_notes: lines that hold for all studies.
        filters: the filters that selected the runs.
    """
    loader = PackageLoader("kdbench.report", ".")
    environment = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        sections=[_section(study) for study in studies],
        notes=common_notes,
        filters=" ".join(filters),
        version=version("kdbench"),
    )


def _section(study: Study) -> dict[str, Any]:
    ranks = tables.rank_table(study)
    return {
        "metric": study.plan.metric.name,
        "runs": counted(len(study.runs), "run"),
        "tables": [(tables.main_table(study), notes(study)), *([(ranks, rank_notes(study))] if ranks else [])],
        "missing": study.missing,
        "missing_runs": counted(len(study.missing), "run"),
        "plots": plots(study),
        "runs_table": _runs_table(study),
    }


def _runs_table(study: Study) -> tables.Table:
    """The runs of each row, so that every number can be traced to its records."""
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
    headings = ["row", "run", "id", metric.label]
    return tables.Table("The runs behind the table", headings, [True, False, False, True], rows)

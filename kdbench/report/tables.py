"""Tables of a study, for the terminal, Markdown, LaTeX and the page. CSV holds the unrounded summary."""

import math
import re
import textwrap
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from kdbench.report.collect import ANY
from kdbench.report.metrics import Metric
from kdbench.report.study import Study


class Cell(NamedTuple):
    """The text of a cell, and the value it is sorted by (None: an empty cell, sorted last)."""

    text: str
    value: float | str | None


class Table(NamedTuple):
    """A title, headings (and which columns are numeric), and rows of cells."""

    title: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]

    def rich(self) -> RichTable:
        """The table for the terminal."""
        table = RichTable(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for heading, numeric, column in zip(self.headings, self.numeric, zip(*self.rows, strict=True), strict=True):
            lines = _wrapped(heading, max(1, *(len(cell.text) for cell in column)))
            table.add_column(lines, justify="right" if numeric else "left", vertical="bottom", overflow="fold")
        for row in self.rows:
            table.add_row(*(cell.text for cell in row))
        return table

    def markdown(self) -> str:
        """The table as a Markdown pipe table below its title."""
        rule = ["---:" if numeric else ":---" for numeric in self.numeric]
        lines = [self.headings, rule, *([cell.text for cell in row] for row in self.rows)]
        body = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        return f"{self.title}\n\n{body}\n"

    def latex(self) -> str:
        """The table as a booktabs tabular with its title as caption."""
        frame = pd.DataFrame([[cell.text for cell in row] for row in self.rows], columns=self.headings)
        text: str = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1).to_latex(
            hrules=True,
            column_format="".join("r" if numeric else "l" for numeric in self.numeric),
            caption=self.title.replace("%", r"\%").replace("_", r"\_"),
            position_float="centering",
        )  # fmt: skip
        for sign, command in {"±": r"$\pm$", "−": "$-$"}.items():
            text = text.replace(sign, command)
        return text


def _wrapped(heading: str, width: int) -> str:
    """A heading in lines of this width where its words allow; keys also break after dots and slashes."""
    breakable = re.sub(r"(?<=[./])(?=\w)", "\0 ", heading)
    return textwrap.fill(breakable, width, break_long_words=False).replace("\0 ", "").replace("\0", "")


def known(value: Any) -> bool:
    """Whether there is a number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


_EMPTY = Cell("", None)


def _formatted(value: Any, metric: Metric, sign: bool = False) -> str:
    displayed = round(metric.scale * value, metric.digits) + 0.0  # turns -0.0 into 0.0
    return f"{displayed:{'+' if sign else ''}.{metric.digits}f}".replace("-", "−")


def _number(value: Any, metric: Metric, sign: bool = False) -> Cell:
    return Cell(_formatted(value, metric, sign), float(value)) if known(value) else _EMPTY


def _interval(low: Any, high: Any, metric: Metric, sign: bool = False) -> Cell:
    if not known(low):
        return _EMPTY
    return Cell(f"[{_formatted(low, metric, sign)}, {_formatted(high, metric, sign)}]", float(low))


def _mean_and_std(row: dict[str, Any], metric: Metric) -> Cell:
    std = f" ± {_formatted(row['std'], metric)}" if known(row["std"]) else ""
    return Cell(_formatted(row["mean"], metric) + std, row["mean"])


def _p_value(p: Any) -> Cell:
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}", p) if known(p) else _EMPTY


def main_table(study: Study) -> Table:
    """The summary with units and rounded values; columns that would be empty are left out."""
    plan, metric = study.plan, study.plan.metric
    difference = "gain" if metric.higher else "difference"
    versus = f"over {plan.baseline}" if metric.higher else f"from {plan.baseline} (lower is better)"
    unit = f" [{metric.unit}]"
    difference_unit = f" [{metric.difference_unit}]" if metric.difference_unit else ""
    keys = plan.grouping.setting + plan.grouping.contender
    rows = study.summary.to_dict("records")
    columns: list[tuple[str, bool, list[Cell]]] = []

    def add(heading: str, cells: list[Cell], numeric: bool = True) -> None:
        if any(cell.text for cell in cells):
            columns.append((heading, numeric, cells))

    for key in [*keys, *([] if "teacher.condition" in keys else ["teacher.condition"])]:
        add(key, [Cell(str(row[key]), row[key]) for row in rows], numeric=False)
    add("n", [Cell(str(row["n"]), row["n"]) for row in rows])
    add(f"{metric.label}, mean ± std", [_mean_and_std(row, metric) for row in rows])
    add("95 % CI", [_interval(row["low"], row["high"], metric) for row in rows])
    gains = [_number(row["gain"], metric, sign=True) for row in rows]
    add(f"{difference} {versus}{difference_unit}", gains)
    intervals = [_interval(row["gain_low"], row["gain_high"], metric, sign=True) for row in rows]
    add(f"95 % CI of the {difference}", intervals)
    add("pairs", [_EMPTY if row["method"] == plan.baseline else Cell(str(row["pairs"]), row["pairs"]) for row in rows])
    add("p", [_p_value(row["p"]) for row in rows])
    add("p (Holm)", [_p_value(row["p_holm"]) for row in rows])
    add(f"minimum detectable difference{difference_unit}", [_number(row["resolvable"], metric) for row in rows])
    add(f"teacher{unit}", [_number(row["teacher_accuracy"], metric) for row in rows])
    add(f"published{unit}", [_number(row["published"], metric) for row in rows])
    add(f"best epoch on test*{unit}", [_number(row["best_epoch"], metric) for row in rows])
    add(f"best member on test*{unit}", [_number(row["best_member"], metric) for row in rows])
    title = f"{metric.name} by {', '.join(keys)}, averaged over {', '.join(plan.grouping.over)}"
    body = [list(row) for row in zip(*(cells for _, _, cells in columns), strict=True)]
    return Table(title, [heading for heading, _, _ in columns], [numeric for _, numeric, _ in columns], body)


def rank_table(study: Study) -> Table | None:
    """Average ranks, and wins, ties and losses against the baseline; None where there are no ranks."""
    if study.ranks.empty:
        return None
    rows = []
    for row in study.ranks.to_dict("records"):
        compared = row["win"] + row["tie"] + row["loss"]
        score = f"{row['win']}/{row['tie']}/{row['loss']}" if compared else ANY
        contender = Cell(row["contender"], row["contender"])
        rows.append([contender, Cell(f"{row['rank']:.2f}", row["rank"]), Cell(score, row["win"] - row["loss"])])
    settings = int(study.ranks["settings"].iloc[0])
    headings = ["method", "average rank", f"win/tie/loss against {study.plan.baseline}"]
    title = f"{study.plan.metric.name}: average ranks over {settings} settings"
    return Table(title, headings, [False, True, True], rows)


def csv(studies: list[Study]) -> str:
    """All summaries in full precision, in the units of the records."""
    frame = pd.concat([study.summary.assign(metric=study.plan.metric.name) for study in studies], ignore_index=True)
    text: str = frame[["metric", *(column for column in frame if column != "metric")]].to_csv(index=False)
    return text

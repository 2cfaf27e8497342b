"""One table, many forms: terminal, Markdown, LaTeX; the page shows the same cells. CSV holds the unrounded summary."""

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
    """What is read, and what it is sorted by (None: nothing to show, sorted last)."""

    text: str
    value: float | str | None


class Table(NamedTuple):
    """A title, headings (and which of them are numbers), rows of cells."""

    title: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for heading, numeric, cells in zip(self.headings, self.numeric, zip(*self.rows, strict=True), strict=True):
            width = max(len(cell.text) for cell in cells)
            # keys break after their dots and slashes
            words = re.sub(r"(?<=[./])(?=\w)", "\0 ", heading)
            lines = textwrap.fill(words, max(1, width), break_long_words=False).replace("\0 ", "").replace("\0", "")
            table.add_column(lines, justify="right" if numeric else "left", vertical="bottom", overflow="fold")
        for row in self.rows:
            table.add_row(*(cell.text for cell in row))
        return table

    def markdown(self) -> str:
        """As a pipe table under its title."""
        rule = ["---:" if numeric else ":---" for numeric in self.numeric]
        lines = [self.headings, rule, *([cell.text for cell in row] for row in self.rows)]
        body = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        return f"{self.title}\n\n{body}\n"

    def latex(self) -> str:
        """As a booktabs tabular under its title as caption."""
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


NOTHING = Cell("", None)


def _number(value: Any, metric: Metric, sign: bool = False) -> str:
    shown = round(metric.scale * value, metric.digits) + 0.0  # no minus before a zero
    return f"{shown:{'+' if sign else ''}.{metric.digits}f}".replace("-", "−")


def known(value: Any) -> bool:
    """Whether there is a number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _plain(value: Any, metric: Metric, sign: bool = False) -> Cell:
    return Cell(_number(value, metric, sign), float(value)) if known(value) else NOTHING


def _range(low: Any, high: Any, metric: Metric, sign: bool = False) -> Cell:
    if not known(low):
        return NOTHING
    return Cell(f"[{_number(low, metric, sign)}, {_number(high, metric, sign)}]", float(low))


def p_text(p: Any) -> str:
    """A p value as it is read; empty where there is none."""
    return "" if not known(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def main_table(study: Study) -> Table:
    """The summary as it is read; a column that would be empty is not there."""
    plan, metric = study.plan, study.plan.metric
    gain = f"gain over {plan.baseline}" if metric.higher else f"difference from {plan.baseline} (less is better)"
    unit = f" [{metric.difference_unit}]" if metric.difference_unit else ""
    keys = plan.grouping.setting + plan.grouping.contender
    columns: list[tuple[str, bool, list[Cell]]] = []

    def add(heading: str, cells: list[Cell], numeric: bool = True) -> None:
        if any(cell.text for cell in cells):
            columns.append((heading, numeric, cells))

    rows = study.summary.to_dict("records")
    for key in [*keys, *([] if "teacher.condition" in keys else ["teacher.condition"])]:
        add(key, [Cell(str(row[key]), row[key]) for row in rows], numeric=False)
    add("n", [Cell(str(row["n"]), row["n"]) for row in rows])
    add(f"{metric.label}, mean ± std", [_spread(row, metric) for row in rows])
    add("95 % interval", [_range(row["low"], row["high"], metric) for row in rows])
    add(gain + unit, [_plain(row["gain"], metric, sign=True) for row in rows])
    add("95 % interval of it", [_range(row["gain_low"], row["gain_high"], metric, sign=True) for row in rows])
    compared = [row["method"] != plan.baseline for row in rows]
    add(
        "pairs",
        [Cell(str(row["pairs"]), row["pairs"]) if c else NOTHING for row, c in zip(rows, compared, strict=True)],
    )
    for heading, key in (("p", "p"), ("p (Holm)", "p_holm")):
        add(heading, [Cell(p_text(row[key]), row[key] if known(row[key]) else None) for row in rows])
    add("smallest to be found" + unit, [_plain(row["resolvable"], metric) for row in rows])
    add(f"teacher [{metric.unit}]", [_plain(row["teacher_accuracy"], metric) for row in rows])
    add(f"published [{metric.unit}]", [_plain(row["published"], metric) for row in rows])
    add(f"best epoch on test* [{metric.unit}]", [_plain(row["best_epoch"], metric) for row in rows])
    add(f"best member on test* [{metric.unit}]", [_plain(row["best_member"], metric) for row in rows])
    title = f"{metric.name}, by {', '.join(keys)}, over {', '.join(plan.grouping.over)}"
    body = [list(row) for row in zip(*(cells for _, _, cells in columns), strict=True)]
    return Table(title, [heading for heading, _, _ in columns], [numeric for _, numeric, _ in columns], body)


def _spread(row: dict[str, Any], metric: Metric) -> Cell:
    spread = f" ± {_number(row['std'], metric)}" if known(row["std"]) else ""
    return Cell(_number(row["mean"], metric) + spread, row["mean"])


def rank_table(study: Study) -> Table | None:
    """Average ranks and wins, ties and losses against the baseline; None where there are no ranks."""
    if study.ranks.empty:
        return None
    rows = []
    for row in study.ranks.to_dict("records"):
        score = f"{row['win']}/{row['tie']}/{row['loss']}" if row["win"] + row["tie"] + row["loss"] else ANY
        rows.append(
            [
                Cell(row["contender"], row["contender"]),
                Cell(f"{row['rank']:.2f}", row["rank"]),
                Cell(score, row["win"] - row["loss"]),
            ]
        )
    settings = int(study.ranks["settings"].iloc[0])
    headings = ["contender", "average rank", f"win/tie/loss against {study.plan.baseline}"]
    return Table(f"{study.plan.metric.name}, ranks over {settings} settings", headings, [False, True, True], rows)


def csv(studies: list[Study]) -> str:
    """All summaries in full precision, in the units of the records."""
    frame = pd.concat([study.summary.assign(metric=study.plan.metric.name) for study in studies], ignore_index=True)
    text: str = frame[["metric", *(column for column in frame if column != "metric")]].to_csv(index=False)
    return text

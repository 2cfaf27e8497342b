"""What all plots share: panels, colours, words, and the SVG that a page can hold."""

import base64
import io
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.collect import ANY
from kdbench.report.grouping import WORDS
from kdbench.report.study import BOTH, Study, contender_of
from kdbench.report.tables import known

PANELS = 12  # of a figure; more would be read by nobody
_COLUMNS = 3
_LEAST = 6.0  # inches: of the panels together


class Plot(NamedTuple):
    """A figure with its title, what it shows, and its SVG, on no ground."""

    title: str
    caption: str
    svg: str

    @property
    def address(self) -> str:
        """The figure as a page can hold it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()

    @property
    def file(self) -> tuple[str, str]:
        """Name and content of a file of its own, on white ground."""
        name = self.title.lower().replace(" ", "_").replace(",", "")
        return f"{name}.svg", self.svg.replace("<svg ", '<svg style="background: white" ', 1)


def grid(count: int, width: float = 4.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels; sizes in inches."""
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    width = max(width * columns, _LEAST)
    figure = Figure(figsize=(width + 0.6, height * lines + 0.4), layout="constrained")
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    return figure, axes


def finish(figure: Figure, axes: list[Axes]) -> str:
    """One legend for all panels, and the SVG."""
    shown: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    if shown:
        columns = max(1, int(figure.get_figwidth() / (0.7 + 0.07 * max(map(len, shown)))))
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(shown) // columns))
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)
    return drawn(figure)


def drawn(figure: Figure) -> str:
    """The SVG of a figure, the same each time."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def words(keys: list[str], values: tuple[Any, ...]) -> str:
    """A setting as a person says it: what there is not, noise say, is not named."""
    said = []
    for key, value in zip(keys, values, strict=True):
        if key == "teacher.condition" and value in ("same", "clean"):
            said.append(f"{value} teacher")
        elif value not in (ANY, "none", BOTH):
            said.append(str(value) if key in WORDS else f"{key}={value}")
    return ", ".join(said) or "clean data"


def colors_of(study: Study) -> dict[str, Any]:
    """One colour a contender in all plots; the baseline is dark grey."""
    names = list(dict.fromkeys(contender_of(row, study.plan.grouping) for row in study.summary.to_dict("records")))
    others = [name for name in names if name != study.plan.baseline]
    palette = mpl.colormaps["tab10" if len(others) <= 10 else "tab20"]
    return {study.plan.baseline: "#444444"} | {name: palette(i % palette.N) for i, name in enumerate(others)}


def said_n(study: Study, rows: pd.DataFrame) -> str:
    """How many runs are behind a point."""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    over = " and ".join(study.plan.grouping.over)
    return f"n = {low if low == high else f'{low} to {high}'} runs over {over}"


def capped(count: int) -> str:
    """What to say where not all settings have a panel."""
    return f"; the first {PANELS} of {count} settings" if count > PANELS else ""


def bars(row: dict[str, Any], scale: float) -> tuple[float, float]:
    """How far the 95 % interval goes down and up from the mean; nan where there is none."""
    if not known(row["low"]):
        return float("nan"), float("nan")
    return scale * (row["mean"] - row["low"]), scale * (row["high"] - row["mean"])

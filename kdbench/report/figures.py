"""Parts that all plots share: panels, colours, labels, and the SVG that the page embeds."""

import base64
import io
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.collect import ANY
from kdbench.report.grouping import READABLE_KEYS
from kdbench.report.settings import Setting, contender_of
from kdbench.report.study import BOTH_CONDITIONS, Study
from kdbench.report.tables import known

MAX_PANELS = 12  # of one figure; more would be unreadable
_COLUMNS = 3
_MIN_WIDTH = 6.0  # inches, of all panels together


class Plot(NamedTuple):
    """A figure: its title, its caption, and its SVG with a transparent background."""

    title: str
    caption: str
    svg: str

    @property
    def address(self) -> str:
        """The figure as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()

    @property
    def file(self) -> tuple[str, str]:
        """Name and content of a separate file, with a white background."""
        name = self.title.lower().replace(" ", "_").replace(",", "")
        return f"{name}.svg", self.svg.replace("<svg ", '<svg style="background: white" ', 1)


def grid(count: int, width: float = 4.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of this size in inches."""
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    width = max(width * columns, _MIN_WIDTH)
    figure = Figure(figsize=(width + 0.6, height * rows + 0.4), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes


def with_legend(figure: Figure, axes: list[Axes]) -> str:
    """The SVG of a figure with one legend for all panels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = max(1, int(figure.get_figwidth() / (0.7 + 0.07 * max(map(len, handles)))))
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    return svg_of(figure)


def svg_of(figure: Figure) -> str:
    """The SVG of a figure, without a date, so that the same figure gives the same text."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue()


def title_of(keys: list[str], setting: Setting) -> str:
    """A setting in words; what it does not have, such as noise, is not mentioned."""
    parts = []
    for key, value in zip(keys, setting, strict=True):
        if key == "teacher.condition" and value in ("same", "clean"):
            parts.append(f"{value} teacher")
        elif value not in (ANY, "none", BOTH_CONDITIONS):
            parts.append(str(value) if key in READABLE_KEYS else f"{key}={value}")
    return ", ".join(parts) or "clean data"


def colors_of(study: Study) -> dict[str, Any]:
    """A colour per contender, the same in all plots; the baseline is dark grey."""
    names = list(dict.fromkeys(contender_of(row, study.plan.grouping) for row in study.summary.to_dict("records")))
    others = [name for name in names if name != study.plan.baseline]
    palette = mpl.colormaps["tab10" if len(others) <= 10 else "tab20"]
    return {study.plan.baseline: "#444444"} | {name: palette(i % palette.N) for i, name in enumerate(others)}


def sample_size(study: Study, rows: pd.DataFrame) -> str:
    """How many runs each point is the mean of, for a caption."""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    over = " and ".join(study.plan.grouping.over)
    return f"n = {low if low == high else f'{low} to {high}'} (runs over {over})"


def omitted_panels(count: int) -> str:
    """For a caption: that not all of `count` settings have a panel; empty if they have."""
    return f"; the first {MAX_PANELS} of {count} settings" if count > MAX_PANELS else ""


def error_bars(row: dict[str, Any], scale: float) -> tuple[float, float]:
    """Distances from the mean down and up to the ends of its 95 % confidence interval; nan where there is none."""
    if not known(row["low"]):
        return float("nan"), float("nan")
    return scale * (row["mean"] - row["low"]), scale * (row["high"] - row["mean"])

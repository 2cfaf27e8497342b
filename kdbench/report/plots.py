"""Plots of a study, each as SVG text; one that the runs do not allow is not drawn."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.collect import ANY
from kdbench.report.metrics import Metric, metric
from kdbench.report.study import Study, cells, contender_of, matrix, settings_of
from kdbench.report.tables import known

_PANELS = 12  # of a figure; more would be read by nobody
_COLUMNS = 3
_STYLE = {
    "svg.hashsalt": "kdbench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
}  # fmt: skip


class Plot(NamedTuple):
    """A figure with its title, what it shows, and the SVG as a data address."""

    title: str
    caption: str
    source: str


class Line(NamedTuple):
    """Points of one curve: x, mean and half-widths down and up (nan where n = 1)."""

    label: str
    contender: str
    dashed: bool
    points: list[tuple[float, float, float, float]]


def plots(study: Study) -> list[Plot]:
    """All plots that the runs allow."""
    if study.summary.empty:
        return []
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        drawn = [
            _curve(study, "noise", _noise_x, "noise.rate"),
            _curve(study, "imbalance", _imbalance_x, "imbalance factor, largest class / smallest", log=True),
            _curve(study, "imbalance", _gamma_x, "imbalance.gamma, smaller = less balanced"),
            _heat_map(study),
            _cost(study),
            _epochs(study, metric("val/accuracy"), "Learning curves", "on the validation split"),
            _epochs(
                study, metric("noisy/wrong"), "Wrong labels learnt", "wrongly labelled training images given that label"
            ),
            _critical_difference(study),
        ]
    return [plot for plot in drawn if plot]


# --------------------------------------------------------------------------------------------- panels


def _grid(count: int, width: float = 4.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns + 0.6, height * lines + 0.4), layout="constrained")
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    return figure, axes


def _finish(figure: Figure, axes: list[Axes]) -> str:
    shown: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    if shown:
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(6, len(shown)))
    return _address(figure)


def _address(figure: Figure) -> str:
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _words(keys: list[str], values: tuple[Any, ...]) -> str:
    return ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True) if value != ANY)


def _colors(study: Study) -> dict[str, Any]:
    """One colour a contender in all plots; the baseline is dark grey."""
    names = list(dict.fromkeys(contender_of(row, study.plan.grouping) for row in study.summary.to_dict("records")))
    others = [name for name in names if name != study.plan.baseline]
    palette = mpl.colormaps["tab10" if len(others) <= 10 else "tab20"]
    return {study.plan.baseline: "#444444"} | {name: palette(i % palette.N) for i, name in enumerate(others)}


def _count(study: Study, rows: pd.DataFrame) -> str:
    low, high = int(rows["n"].min()), int(rows["n"].max())
    over = " and ".join(study.plan.grouping.over)
    return f"n = {low if low == high else f'{low} to {high}'} runs over {over}"


def _capped(count: int) -> str:
    return f"; the first {_PANELS} of {count} settings" if count > _PANELS else ""


# --------------------------------------------------------------------------------------------- curves

Place = Callable[[dict[str, Any]], tuple[str | None, float] | None]


def _noise_x(cfg: dict[str, Any]) -> tuple[str | None, float] | None:
    """Kind and rate; of no kind where there is none, for it is the start of every curve."""
    if cfg["noise"]["name"] == "none":
        return None, 0.0
    rate = cfg["noise"]["rate"]
    return None if rate is None else (cfg["noise"]["name"], rate)


def _imbalance_x(cfg: dict[str, Any]) -> tuple[str | None, float] | None:
    if cfg["imbalance"]["name"] == "none":
        return None, 1.0
    factor = cfg["imbalance"].get("factor")
    return None if factor is None else (cfg["imbalance"]["name"], factor)


def _gamma_x(cfg: dict[str, Any]) -> tuple[str | None, float] | None:
    gamma = cfg["imbalance"].get("gamma")
    return None if gamma is None else (cfg["imbalance"]["name"], gamma)


def _curve(study: Study, group: str, place: Place, label: str, log: bool = False) -> Plot | None:
    """The metric against the strength of noise or imbalance: a panel a kind and other setting, a line a contender."""
    grouping, scale = study.plan.grouping, study.plan.metric.scale
    own = {group, f"{group}.name", f"{group}.rate", f"{group}.factor", f"{group}.gamma", "teacher.condition"}
    keys = [key for key in grouping.setting if key not in own]
    configs = {number: rows["record"].iloc[0].config for number, rows in study.runs.groupby("row")}
    rows = study.summary.assign(at=[place(configs[number]) for number in study.summary.index])
    rows = rows[rows["at"].notna()]
    if rows.empty:
        return None
    panels: list[tuple[str, list[Line]]] = []
    for setting in settings_of(rows, keys):
        inside = [row for found, row in cells(rows, keys) if found == setting]
        for kind in dict.fromkeys(row["at"][0] for row in inside if row["at"][0]):
            lines = list(_lines([row for row in inside if row["at"][0] in (kind, None)], study, scale))
            if any(len(line.points) > 1 for line in lines):
                panels.append((", ".join(filter(None, [kind, _words(keys, setting)])), lines))
    if not panels:
        return None
    figure, axes = _grid(min(len(panels), _PANELS))
    colors = _colors(study)
    for axis, (title, lines) in zip(axes, panels, strict=False):
        for line in lines:
            x, y, down, up = np.array(sorted(line.points)).T
            axis.errorbar(x, y, [down, up], label=line.label, color=colors[line.contender], marker="o", markersize=3,
                          linestyle="--" if line.dashed else "-", capsize=2, linewidth=1.2)  # fmt: skip
        axis.set(title=title, xlabel=label, ylabel=study.plan.metric.label, **({"xscale": "log"} if log else {}))
    bars = "bars: 95 % intervals; dashed: teacher trained on clean data"
    caption = f"{study.plan.metric.name} against {label}; {_count(study, rows)}; {bars}{_capped(len(panels))}."
    return Plot(f"{group.capitalize()} curve", caption, _finish(figure, axes))


def _lines(rows: list[dict[str, Any]], study: Study, scale: float) -> Iterator[Line]:
    """A line a contender and condition of the teacher; where no condition is meant, the point is in all its lines."""
    by_contender: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_contender.setdefault(contender_of(row, study.plan.grouping), []).append(row)
    for contender, own in by_contender.items():
        open_ = (ANY, "same/clean")
        conditions = sorted({row["teacher.condition"] for row in own} - set(open_)) or [ANY]
        for condition in conditions:
            chosen = [row for row in own if row["teacher.condition"] in (condition, *open_)]
            points = [(row["at"][1], scale * row["mean"], *_bars(row, scale)) for row in chosen]
            label = contender if condition in (ANY, "same") else f"{contender}, {condition} teacher"
            yield Line(label, contender, condition == "clean", points)


def _bars(row: dict[str, Any], scale: float) -> tuple[float, float]:
    if not known(row["low"]):
        return float("nan"), float("nan")
    return scale * (row["mean"] - row["low"]), scale * (row["high"] - row["mean"])


def _epochs(study: Study, what: Metric, title: str, where: str) -> Plot | None:
    """A metric of the epochs: a panel a setting, a line a contender, the mean of its runs and one standard deviation."""
    grouping = study.plan.grouping
    curves = {number: _mean_curve(runs, what) for number, runs in study.runs.groupby("row")}
    rows = study.summary[[curves[number] is not None for number in study.summary.index]]
    if rows.empty:
        return None
    settings = settings_of(rows, grouping.setting)
    figure, axes = _grid(min(len(settings), _PANELS))
    colors = _colors(study)
    for setting, row in cells(rows.assign(number=rows.index), grouping.setting):
        if (place := settings.index(setting)) < _PANELS and (curve := curves[row["number"]]) is not None:
            contender = contender_of(row, grouping)
            epochs, mean, std = curve
            axes[place].plot(epochs, mean, label=contender, color=colors[contender], linewidth=1.2)
            axes[place].fill_between(epochs, mean - std, mean + std, color=colors[contender], alpha=0.15, linewidth=0)
    for axis, setting in zip(axes, settings, strict=False):
        axis.set(title=_words(grouping.setting, setting), xlabel="epoch", ylabel=what.label)
    caption = f"{what.name}, {where}; lines: means, bands: one standard deviation; {_count(study, rows)}"
    return Plot(title, f"{caption}{_capped(len(settings))}.", _finish(figure, axes))


def _mean_curve(runs: pd.DataFrame, what: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Epochs (from 1) that all runs have, and mean and standard deviation over the runs."""
    histories = []
    for record in runs["record"]:
        history = {row["epoch"]: row[what.name] for row in record.epochs if row.get(what.name) is not None}
        histories.append(pd.Series(history, dtype=float))
    frame = pd.concat(histories, axis=1).dropna() * what.scale
    if frame.empty:
        return None
    spread = frame.std(axis=1, ddof=1).fillna(0.0)
    return frame.index.to_numpy() + 1, frame.mean(axis=1).to_numpy(), spread.to_numpy()


# --------------------------------------------------------------------------------------------- the others


def _heat_map(study: Study) -> Plot | None:
    """Gain over the baseline: contenders against settings."""
    grouping, unit = study.plan.grouping, study.plan.metric
    gains = matrix(study.summary, grouping, "gain").astype(float).dropna(axis="columns", how="all") * unit.scale
    if gains.size < 2:
        return None
    labels = [
        _words(grouping.setting, setting) or "all runs" for setting in settings_of(study.summary, grouping.setting)
    ]
    figure = Figure(figsize=(2.5 + 0.8 * len(labels), 1.6 + 0.34 * gains.shape[1]), layout="constrained")
    axis = figure.add_subplot()
    limit = float(np.nanmax(np.abs(gains))) or 1.0
    colors = "RdBu" if unit.higher else "RdBu_r"
    image = axis.imshow(gains.T, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for x, y in np.ndindex(gains.shape):
        value = gains.iloc[x, y]
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(x, y, f"{value:+.{unit.digits}f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(gains.shape[1]), gains.columns)
    axis.grid(visible=False)
    difference = f" [{unit.difference_unit}]" if unit.difference_unit else ""
    figure.colorbar(image, label=f"difference from {study.plan.baseline}{difference}")
    compared = study.summary[study.summary["pairs"] > 0]
    pairs = sorted(set(compared["pairs"]))
    caption = f"{unit.name}, mean difference from {study.plan.baseline}, blue is better; pairs: "
    return Plot(
        "Heat map of gains", f"{caption}{' to '.join(map(str, pairs[:: max(1, len(pairs) - 1)]))}.", _address(figure)
    )


def _cost(study: Study) -> Plot | None:
    """The metric against seconds of training, the teacher's included; the line joins what nothing beats in both."""
    if study.plan.metric.name.startswith("cost/") or "cost/total_seconds" not in study.runs:
        return None
    grouping, scale, higher = study.plan.grouping, study.plan.metric.scale, study.plan.metric.higher
    rows = study.summary.assign(seconds=study.runs.groupby("row")["cost/total_seconds"].mean()).dropna(subset="seconds")
    settings = settings_of(rows, grouping.setting)
    figure, axes = _grid(min(len(settings), _PANELS))
    colors = _colors(study)
    for place, (axis, setting) in enumerate(zip(axes, settings, strict=False)):
        inside = [row for found, row in cells(rows, grouping.setting) if settings.index(found) == place]
        for row in inside:
            contender, bars = contender_of(row, grouping), np.array(_bars(row, scale))[:, None]
            axis.errorbar(row["seconds"], scale * row["mean"], bars, label=contender, color=colors[contender],
                          marker="o", markersize=4, capsize=2, linestyle="none")  # fmt: skip
        front = pareto([(row["seconds"], scale * row["mean"]) for row in inside], higher)
        axis.plot(*zip(*front, strict=True), color="#999999", linewidth=0.8, zorder=0)
        axis.set(
            title=_words(grouping.setting, setting), xlabel="training and teacher [s]", ylabel=study.plan.metric.label
        )
    machines = study.runs["machine"].nunique()
    where = "" if machines == 1 else f"; the runs come from {machines} machines, so that their times do not compare"
    caption = f"{study.plan.metric.name} against the time of training, the teacher's in full for every run that used it"
    caption += f"; bars: 95 % intervals, line: Pareto front; {_count(study, rows)}{where}{_capped(len(settings))}."
    return Plot("Accuracy against cost" if "accuracy" in study.plan.metric.name else "Metric against cost", caption,
                _finish(figure, axes))  # fmt: skip


def pareto(points: list[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """The points (cost, value) that no cheaper point equals or beats, from the cheapest."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1] if higher else point[1])):
        if not front or (value > front[-1][1] if higher else value < front[-1][1]):
            front.append((cost, value))
    return front


def _critical_difference(study: Study) -> Plot | None:
    """Average ranks with Nemenyi's critical difference, drawn by autorank; None without it."""
    if lacking(study):
        return None
    from autorank import autorank, plot_stats

    means = matrix(study.summary, study.plan.grouping, "mean").astype(float).dropna(axis="columns")
    order = "descending" if study.plan.metric.higher else "ascending"
    result = autorank(means, force_mode="nonparametric", order=order)
    figure = Figure(figsize=(7, 2.2 + 0.12 * means.shape[1]))
    plot_stats(result, ax=figure.add_subplot(), allow_insignificant=True, width=7)
    caption = f"Average ranks over {len(means)} settings, 1 the best; what a bar joins differs by less than Nemenyi's "
    return Plot(
        "Critical difference",
        f"{caption}critical difference {result.cd:.2f} (5 %), drawn by autorank.",
        _address(figure),
    )


def lacking(study: Study) -> str | None:
    """Why there is no critical-difference plot, in words for the reader; None where there is."""
    if len(study.ranks) < 3 or int(study.ranks["settings"].iloc[0]) < 5:
        return "a critical-difference plot needs 3 contenders that were all run in 5 settings"
    try:
        import autorank  # noqa: F401
    except ImportError:
        return "for the critical-difference plot: pip install 'kdbench[stats]', then --html"
    return None

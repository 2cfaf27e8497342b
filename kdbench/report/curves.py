"""Curves: a metric against the rate of noise, the strength of imbalance, and the epochs."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdbench.report.collect import ANY
from kdbench.report.figures import (
    MAX_PANELS,
    Plot,
    colors_of,
    error_bars,
    grid,
    omitted_panels,
    sample_size,
    title_of,
    with_legend,
)
from kdbench.report.metrics import Metric
from kdbench.report.settings import cells, contender_of, settings_of
from kdbench.report.study import BOTH_CONDITIONS, Study

# Where a run is on the x axis: (kind of noise or imbalance, strength). The kind is None for runs without any, which are
# the first point of the curves of all kinds. No position at all: the run is on no curve.
Position = tuple[str | None, float] | None
PositionOf = Callable[[dict[str, Any]], Position]


class Curve(NamedTuple):
    """One curve.

    Attributes:
        label: its entry in the legend.
        contender: decides its colour.
        dashed: whether its line is dashed.
        points: (x, mean, distance down, distance up to the ends of the interval); the latter are nan where n = 1.
    """

    label: str
    contender: str
    dashed: bool
    points: list[tuple[float, float, float, float]]


def against_noise(study: Study) -> Plot | None:
    """The metric against the rate of label noise."""
    return _curves(study, "noise", _noise_rate, "noise.rate")


def against_imbalance(study: Study) -> Plot | None:
    """The metric against the imbalance factor of a long tail or step."""
    return _curves(study, "imbalance", _imbalance_factor, "imbalance factor, largest class / smallest", log=True)


def against_gamma(study: Study) -> Plot | None:
    """The metric against the exponent of a power law."""
    return _curves(study, "imbalance", _gamma, "imbalance.gamma, smaller = less balanced")


def _noise_rate(cfg: dict[str, Any]) -> Position:
    if cfg["noise"]["name"] == "none":
        return None, 0.0
    rate = cfg["noise"]["rate"]
    return None if rate is None else (cfg["noise"]["name"], rate)


def _imbalance_factor(cfg: dict[str, Any]) -> Position:
    if cfg["imbalance"]["name"] == "none":
        return None, 1.0
    factor = cfg["imbalance"].get("factor")
    return None if factor is None else (cfg["imbalance"]["name"], factor)


def _gamma(cfg: dict[str, Any]) -> Position:
    gamma = cfg["imbalance"].get("gamma")
    return None if gamma is None else (cfg["imbalance"]["name"], gamma)


def _curves(study: Study, group: str, position_of: PositionOf, label: str, log: bool = False) -> Plot | None:
    """The metric against the strength of noise or imbalance.

    Args:
        study: the comparison.
        group: `noise` or `imbalance`.
        position_of: from the configuration of a run to its place on the x axis.
        label: of the x axis.
        log: whether the x axis is logarithmic.

    Returns:
        A panel for each kind of noise or imbalance and each setting apart from that, a curve for each contender; None
        if there is no curve of at least two points.
    """
    grouping, metric = study.plan.grouping, study.plan.metric
    varied = {group, f"{group}.name", f"{group}.rate", f"{group}.factor", f"{group}.gamma", "teacher.condition"}
    keys = [key for key in grouping.setting if key not in varied]
    configs = {number: runs["record"].iloc[0].config for number, runs in study.runs.groupby("row")}
    rows = study.summary.assign(position=[position_of(configs[number]) for number in study.summary.index])
    rows = rows[rows["position"].notna()]
    if rows.empty:
        return None
    panels: list[tuple[str, list[Curve]]] = []
    for setting in settings_of(rows, keys):
        inside = [row for other, row in cells(rows, keys) if other == setting]
        for kind in dict.fromkeys(row["position"][0] for row in inside if row["position"][0]):
            of_kind = [row for row in inside if row["position"][0] in (kind, None)]
            if curves := list(_curves_of_panel(of_kind, study)):
                panels.append((", ".join([kind, title_of(keys, setting)]).removesuffix(", clean data"), curves))
    if not panels:
        return None
    figure, axes = grid(min(len(panels), MAX_PANELS))
    colors = colors_of(study)
    for axis, (title, curves) in zip(axes, panels, strict=False):
        for curve in curves:
            x, y, down, up = np.array(sorted(curve.points)).T
            axis.errorbar(x, y, [down, up], label=curve.label, color=colors[curve.contender], marker="o", markersize=3,
                          linestyle="--" if curve.dashed else "-", capsize=2, linewidth=1.2)  # fmt: skip
        axis.set(title=title, xlabel=label, ylabel=metric.label)
        if log:
            axis.set_xscale("log")
            axis.minorticks_off()
            ticks = sorted({x for curve in curves for x, *_ in curve.points})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    dashed = any(curve.dashed for _, curves in panels for curve in curves)
    marks = "bars: 95 % confidence intervals" + ("; dashed: teacher trained on clean data" if dashed else "")
    caption = f"{metric.name} against {label}; {sample_size(study, rows)}; {marks}{omitted_panels(len(panels))}."
    return Plot(f"{group.capitalize()} curve", caption, with_legend(figure, axes))


def _curves_of_panel(rows: list[dict[str, Any]], study: Study) -> Iterator[Curve]:
    """A curve for each contender and condition of its teacher.

    Rows without one condition (there is no teacher, or both conditions are the same run) are part of all its curves.
    """
    scale = study.plan.metric.scale
    by_contender: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_contender.setdefault(contender_of(row, study.plan.grouping), []).append(row)
    for contender, own_rows in by_contender.items():
        shared = (ANY, BOTH_CONDITIONS)
        conditions = sorted({row["teacher.condition"] for row in own_rows} - set(shared)) or [ANY]
        for condition in conditions:
            selected = [row for row in own_rows if row["teacher.condition"] in (condition, *shared)]
            points = [(row["position"][1], scale * row["mean"], *error_bars(row, scale)) for row in selected]
            label = contender if condition in (ANY, "same") else f"{contender}, {condition} teacher"
            if len({x for x, *_ in points}) > 1:
                yield Curve(label, contender, condition == "clean", points)


def against_epochs(study: Study, metric: Metric, title: str, meaning: str) -> Plot | None:
    """A metric that is recorded after every epoch.

    Args:
        study: the comparison.
        metric: a key of `metrics.jsonl`.
        title: of the plot.
        meaning: of the metric, for the caption.

    Returns:
        A panel for each setting, a curve for each contender: mean and standard deviation of its runs; None if no run
        has the metric.
    """
    grouping = study.plan.grouping
    curves = {number: _mean_curve(runs, metric) for number, runs in study.runs.groupby("row")}
    rows = study.summary[[curves[number] is not None for number in study.summary.index]]
    if rows.empty:
        return None
    settings = settings_of(rows, grouping.setting)
    figure, axes = grid(min(len(settings), MAX_PANELS))
    colors = colors_of(study)
    for setting, row in cells(rows.assign(number=rows.index), grouping.setting):
        panel = settings.index(setting)
        if panel < MAX_PANELS and (curve := curves[row["number"]]) is not None:
            contender = contender_of(row, grouping)
            epochs, mean, std = curve
            axes[panel].plot(epochs, mean, label=contender, color=colors[contender], linewidth=1.2)
            axes[panel].fill_between(epochs, mean - std, mean + std, color=colors[contender], alpha=0.15, linewidth=0)
    for axis, setting in zip(axes, settings, strict=False):
        axis.set(title=title_of(grouping.setting, setting), xlabel="epoch", ylabel=metric.label)
    caption = f"{metric.name}, {meaning}; lines: means, bands: one standard deviation; {sample_size(study, rows)}"
    return Plot(title, f"{caption}{omitted_panels(len(settings))}.", with_legend(figure, axes))


def _mean_curve(runs: pd.DataFrame, metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Epochs (from 1) that all runs have, and mean and standard deviation over the runs; None without such epochs."""
    histories = []
    for record in runs["record"]:
        history = {row["epoch"]: row[metric.name] for row in record.epochs if row.get(metric.name) is not None}
        histories.append(pd.Series(history, dtype=float))
    frame = pd.concat(histories, axis=1).dropna() * metric.scale
    if frame.empty:
        return None
    std = frame.std(axis=1, ddof=1).fillna(0.0)
    return frame.index.to_numpy() + 1, frame.mean(axis=1).to_numpy(), std.to_numpy()

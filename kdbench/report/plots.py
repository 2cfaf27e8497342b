"""Plots of a study, each as SVG text; one that the runs do not allow is not drawn."""

import io
from contextlib import redirect_stdout

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kdbench.report.curves import against_gamma, against_imbalance, against_noise, epochs
from kdbench.report.figures import PANELS, Plot, bars, capped, colors_of, drawn, finish, grid, said_n, words
from kdbench.report.metrics import metric
from kdbench.report.notes import lacking
from kdbench.report.study import Study, cells, contender_of, matrix, settings_of

_STYLE = {
    "svg.hashsalt": "kdbench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
}  # fmt: skip


def plots(study: Study) -> list[Plot]:
    """All plots that the runs allow."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        found = [
            against_noise(study),
            against_imbalance(study),
            against_gamma(study),
            _heat_map(study),
            _cost(study),
            epochs(study, metric("val/accuracy"), "Learning curves", "on the validation split"),
            epochs(
                study, metric("noisy/wrong"), "Wrong labels learnt", "wrongly labelled training images given that label"
            ),
            _critical_difference(study),
        ]
    return [plot for plot in found if plot]


def _heat_map(study: Study) -> Plot | None:
    """Gain over the baseline: contenders against settings."""
    grouping, unit = study.plan.grouping, study.plan.metric
    gains = matrix(study.summary, grouping, "gain").astype(float).dropna(axis="columns", how="all") * unit.scale
    if gains.size < 2:
        return None
    labels = [
        words(grouping.setting, setting) or "all runs" for setting in settings_of(study.summary, grouping.setting)
    ]
    figure = Figure(figsize=(2.5 + 0.8 * len(labels), max(2.6, 1.6 + 0.34 * gains.shape[1])), layout="constrained")
    axis = figure.add_subplot()
    limit = float(np.nanmax(np.abs(gains))) or 1.0
    colors = "RdBu" if unit.higher else "RdBu_r"
    image = axis.imshow(gains.T, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for x, y in np.ndindex(gains.shape):
        value = gains.iloc[x, y]
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(
                x,
                y,
                f"{round(value, unit.digits) + 0.0:+.{unit.digits}f}",
                ha="center",
                va="center",
                fontsize=7,
                color=color,
            )
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(gains.shape[1]), gains.columns)
    axis.grid(visible=False)
    figure.colorbar(image, label=unit.difference_unit)
    compared = study.summary[study.summary["pairs"] > 0]
    pairs = sorted(set(compared["pairs"]))
    caption = f"{unit.name}, mean difference from {study.plan.baseline}, blue is better; pairs: "
    return Plot(
        "Heat map of gains", f"{caption}{' to '.join(map(str, pairs[:: max(1, len(pairs) - 1)]))}.", drawn(figure)
    )


def _cost(study: Study) -> Plot | None:
    """The metric against seconds of training, the teacher's included; the line joins what nothing beats in both."""
    if study.plan.metric.name.startswith("cost/") or "cost/total_seconds" not in study.runs:
        return None
    grouping, scale, higher = study.plan.grouping, study.plan.metric.scale, study.plan.metric.higher
    rows = study.summary.assign(seconds=study.runs.groupby("row")["cost/total_seconds"].mean()).dropna(subset="seconds")
    settings = settings_of(rows, grouping.setting)
    figure, axes = grid(min(len(settings), PANELS))
    colors = colors_of(study)
    for place, (axis, setting) in enumerate(zip(axes, settings, strict=False)):
        inside = [row for found, row in cells(rows, grouping.setting) if settings.index(found) == place]
        for row in inside:
            contender, reach = contender_of(row, grouping), np.array(bars(row, scale))[:, None]
            axis.errorbar(row["seconds"], scale * row["mean"], reach, label=contender, color=colors[contender],
                          marker="o", markersize=4, capsize=2, linestyle="none")  # fmt: skip
        front = pareto([(row["seconds"], scale * row["mean"]) for row in inside], higher)
        axis.plot(*zip(*front, strict=True), color="#999999", linewidth=0.8, zorder=0)
        axis.set(
            title=words(grouping.setting, setting), xlabel="training and teacher [s]", ylabel=study.plan.metric.label
        )
    machines = study.runs["machine"].nunique()
    where = "" if machines == 1 else f"; the runs come from {machines} machines, so that their times do not compare"
    caption = f"{study.plan.metric.name} against the time of training, the teacher's in full for every run that used it"
    caption += f"; bars: 95 % intervals, line: Pareto front; {said_n(study, rows)}{where}{capped(len(settings))}."
    return Plot("Accuracy against cost" if "accuracy" in study.plan.metric.name else "Metric against cost", caption,
                finish(figure, axes))  # fmt: skip


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
    with redirect_stdout(io.StringIO()):  # it prints its own tables
        result = autorank(means, force_mode="nonparametric", order=order)
    figure = Figure(figsize=(7, 2.2 + 0.12 * means.shape[1]))
    plot_stats(result, ax=figure.add_subplot(), allow_insignificant=True)
    caption = f"Average ranks over {len(means)} settings, 1 the best; what a bar joins differs by less than Nemenyi's "
    return Plot(
        "Critical difference",
        f"{caption}critical difference {result.cd:.2f} (5 %), drawn by autorank.",
        drawn(figure),
    )

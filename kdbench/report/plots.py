"""Plots of a study as SVG; a plot for which there are not enough runs is left out."""

import io
from contextlib import redirect_stdout

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kdbench.report.curves import against_epochs, against_gamma, against_imbalance, against_noise
from kdbench.report.figures import (
    MAX_PANELS,
    Plot,
    colors_of,
    error_bars,
    grid,
    omitted_panels,
    sample_size,
    svg_of,
    title_of,
    with_legend,
)
from kdbench.report.metrics import metric
from kdbench.report.notes import note_on_answers, why_no_critical_difference
from kdbench.report.settings import cells, contender_of, matrix, settings_of
from kdbench.report.study import Study

_STYLE = {
    "svg.hashsalt": "kdbench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
}  # fmt: skip
_WRONG_LABELS = "share of wrongly labelled training images that the student predicts with their wrong label"


def plots(study: Study) -> list[Plot]:
    """All plots for which there are enough runs."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        candidates = [
            against_noise(study),
            against_imbalance(study),
            against_gamma(study),
            _heat_map(study),
            _cost(study),
            against_epochs(study, metric("val/accuracy"), "Learning curves", "on the validation set"),
            against_epochs(study, metric("noisy/wrong"), "Wrong labels learnt", _WRONG_LABELS),
            _critical_difference(study),
        ]
    return [plot for plot in candidates if plot]


def _heat_map(study: Study) -> Plot | None:
    """Gains over the baseline: contenders against settings."""
    grouping, shown = study.plan.grouping, study.plan.metric
    gains = matrix(study.summary, grouping, "gain").astype(float).dropna(axis="columns", how="all") * shown.scale
    if gains.size < 2:
        return None
    labels = [title_of(grouping.setting, setting) for setting in settings_of(study.summary, grouping.setting)]
    figure = Figure(figsize=(2.5 + 0.8 * len(labels), max(2.6, 1.6 + 0.34 * gains.shape[1])), layout="constrained")
    axis = figure.add_subplot()
    limit = float(np.nanmax(np.abs(gains))) or 1.0
    colors = "RdBu" if shown.higher else "RdBu_r"
    image = axis.imshow(gains.T, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for x, y in np.ndindex(gains.shape):
        value = gains.iloc[x, y]
        if np.isfinite(value):
            text = f"{round(value, shown.digits) + 0.0:+.{shown.digits}f}"
            color = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_yticks(range(gains.shape[1]), gains.columns)
    axis.grid(visible=False)
    figure.colorbar(image, label=shown.difference_unit)
    pairs = study.summary["pairs"][study.summary["pairs"] > 0]
    span = " to ".join(map(str, sorted({pairs.min(), pairs.max()})))
    caption = f"{shown.name}, mean difference from {study.plan.baseline}, blue is better; pairs: {span}."
    return Plot("Heat map of gains", caption, svg_of(figure))


def _cost(study: Study) -> Plot | None:
    """The metric against seconds of training, including the teacher's, with the Pareto front."""
    grouping, shown = study.plan.grouping, study.plan.metric
    if shown.name.startswith("cost/") or "cost/total_seconds" not in study.runs:
        return None
    rows = study.summary.assign(seconds=study.runs.groupby("row")["cost/total_seconds"].mean()).dropna(subset="seconds")
    settings = settings_of(rows, grouping.setting)
    figure, axes = grid(min(len(settings), MAX_PANELS))
    colors = colors_of(study)
    for axis, setting in zip(axes, settings, strict=False):
        inside = [row for other, row in cells(rows, grouping.setting) if other == setting]
        for row in inside:
            contender, bars = contender_of(row, grouping), np.array(error_bars(row, shown.scale))[:, None]
            axis.errorbar(row["seconds"], shown.scale * row["mean"], bars, label=contender, color=colors[contender],
                          marker="o", markersize=4, capsize=2, linestyle="none")  # fmt: skip
        front = pareto([(row["seconds"], shown.scale * row["mean"]) for row in inside], shown.higher)
        axis.plot(*zip(*front, strict=True), color="#999999", linewidth=0.8, zorder=0)
        axis.set(title=title_of(grouping.setting, setting), xlabel="training time with teacher [s]", ylabel=shown.label)
    machines = study.runs["machine"].nunique()
    warning = "" if machines == 1 else f"; the runs were made on {machines} machines, so their times are not comparable"
    warning += f"; {note}" if (note := note_on_answers(study)) else ""
    caption = (
        f"{shown.name} against training time, which includes the teacher's in full for every run that used it; bars: "
        f"95 % confidence intervals, line: Pareto front; {sample_size(study, rows)}{warning}"
        f"{omitted_panels(len(settings))}."
    )
    title = "Accuracy against cost" if "accuracy" in shown.name else "Metric against cost"
    return Plot(title, caption, with_legend(figure, axes))


def pareto(points: list[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """The Pareto front: the points (cost, value) that no cheaper point equals or beats, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1] if higher else point[1])):
        if not front or (value > front[-1][1] if higher else value < front[-1][1]):
            front.append((cost, value))
    return front


def _critical_difference(study: Study) -> Plot | None:
    """Average ranks with Nemenyi's critical difference, drawn by autorank; None without it."""
    if why_no_critical_difference(study):
        return None
    from autorank import autorank, plot_stats

    means = matrix(study.summary, study.plan.grouping, "mean").astype(float).dropna(axis="columns")
    order = "descending" if study.plan.metric.higher else "ascending"
    with redirect_stdout(io.StringIO()):  # it prints its own tables
        result = autorank(means, force_mode="nonparametric", order=order)
    figure = Figure(figsize=(7, 2.2 + 0.12 * means.shape[1]))
    plot_stats(result, ax=figure.add_subplot(), allow_insignificant=True)
    caption = (
        f"Average ranks over {len(means)} settings, 1 = best; methods joined by a bar differ by less than the critical "
        f"difference {result.cd:.2f} of the Nemenyi test (5 %); drawn by autorank."
    )
    return Plot("Critical difference", caption, svg_of(figure))

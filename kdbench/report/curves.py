"""Curves: a metric against the rate of noise, the strength of imbalance, and the epochs."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdbench.report.collect import ANY
from kdbench.report.figures import PANELS, Plot, bars, capped, colors_of, finish, grid, said_n, words
from kdbench.report.metrics import Metric
from kdbench.report.study import BOTH, Study, cells, contender_of, settings_of

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


class Line(NamedTuple):
    """Points of one curve: x, mean and half-widths down and up (nan where n = 1)."""

    label: str
    contender: str
    dashed: bool
    points: list[tuple[float, float, float, float]]


def against_noise(study: Study) -> Plot | None:
    """The metric against the rate of label noise."""
    return _curve(study, "noise", _noise_x, "noise.rate")


def against_imbalance(study: Study) -> Plot | None:
    """The metric against the factor of a long tail or a step."""
    return _curve(study, "imbalance", _imbalance_x, "imbalance factor, largest class / smallest", log=True)


def against_gamma(study: Study) -> Plot | None:
    """The metric against the exponent of a power law."""
    return _curve(study, "imbalance", _gamma_x, "imbalance.gamma, smaller = less balanced")


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
            if lines := list(_lines([row for row in inside if row["at"][0] in (kind, None)], study, scale)):
                panels.append((", ".join([kind, words(keys, setting)]).removesuffix(", clean data"), lines))
    if not panels:
        return None
    figure, axes = grid(min(len(panels), PANELS))
    colors = colors_of(study)
    for axis, (title, lines) in zip(axes, panels, strict=False):
        for line in lines:
            x, y, down, up = np.array(sorted(line.points)).T
            axis.errorbar(x, y, [down, up], label=line.label, color=colors[line.contender], marker="o", markersize=3,
                          linestyle="--" if line.dashed else "-", capsize=2, linewidth=1.2)  # fmt: skip
        axis.set(title=title, xlabel=label, ylabel=study.plan.metric.label)
        if log:
            axis.set_xscale("log")
            axis.minorticks_off()
            places = sorted({x for line in lines for x, *_ in line.points})
            axis.set_xticks(places, [f"{place:g}" for place in places])
    dashed = any(line.dashed for _, lines in panels for line in lines)
    marks = "bars: 95 % intervals" + ("; dashed: teacher trained on clean data" if dashed else "")
    caption = f"{study.plan.metric.name} against {label}; {said_n(study, rows)}; {marks}{capped(len(panels))}."
    return Plot(f"{group.capitalize()} curve", caption, finish(figure, axes))


def _lines(rows: list[dict[str, Any]], study: Study, scale: float) -> Iterator[Line]:
    """A line a contender and condition of the teacher; where no condition is meant, the point is in all its lines."""
    by_contender: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_contender.setdefault(contender_of(row, study.plan.grouping), []).append(row)
    for contender, own in by_contender.items():
        open_ = (ANY, BOTH)
        conditions = sorted({row["teacher.condition"] for row in own} - set(open_)) or [ANY]
        for condition in conditions:
            chosen = [row for row in own if row["teacher.condition"] in (condition, *open_)]
            points = [(row["at"][1], scale * row["mean"], *bars(row, scale)) for row in chosen]
            label = contender if condition in (ANY, "same") else f"{contender}, {condition} teacher"
            if len({x for x, *_ in points}) > 1:
                yield Line(label, contender, condition == "clean", points)


def epochs(study: Study, what: Metric, title: str, where: str) -> Plot | None:
    """A metric of the epochs: a panel a setting, a line a contender, mean and standard deviation of its runs."""
    grouping = study.plan.grouping
    curves = {number: _mean_curve(runs, what) for number, runs in study.runs.groupby("row")}
    rows = study.summary[[curves[number] is not None for number in study.summary.index]]
    if rows.empty:
        return None
    settings = settings_of(rows, grouping.setting)
    figure, axes = grid(min(len(settings), PANELS))
    colors = colors_of(study)
    for setting, row in cells(rows.assign(number=rows.index), grouping.setting):
        if (place := settings.index(setting)) < PANELS and (curve := curves[row["number"]]) is not None:
            contender = contender_of(row, grouping)
            epochs, mean, std = curve
            axes[place].plot(epochs, mean, label=contender, color=colors[contender], linewidth=1.2)
            axes[place].fill_between(epochs, mean - std, mean + std, color=colors[contender], alpha=0.15, linewidth=0)
    for axis, setting in zip(axes, settings, strict=False):
        axis.set(title=words(grouping.setting, setting), xlabel="epoch", ylabel=what.label)
    caption = f"{what.name}, {where}; lines: means, bands: one standard deviation; {said_n(study, rows)}"
    return Plot(title, f"{caption}{capped(len(settings))}.", finish(figure, axes))


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

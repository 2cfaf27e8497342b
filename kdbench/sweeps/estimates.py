"""How long runs will take and how much disk, from finished runs of the same kind. Imports no torch."""

import glob
import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.config.networks import network_options
from kdbench.records.identity import dataset_word, method_word, needs_teacher
from kdbench.records.record import Record
from kdbench.sweeps.grid import Task


class Estimate(NamedTuple):
    """What a run will take; None where it is unknown.

    Attributes:
        seconds: of training.
        size: bytes on disk, once it is finished.
    """

    seconds: float | None
    size: float | None


class Finished(NamedTuple):
    """What one finished run took.

    Attributes:
        host: where it ran.
        pace: seconds an epoch.
        size: bytes on disk.
    """

    host: str
    pace: float
    size: int


class Estimates:
    """Estimates from the records below one root.

    Runs are of the same kind if they differ only in what time does not depend on: seed, noise, learning rate, length.
    Runs on this host, if there are any, are used rather than others.
    """

    def __init__(self) -> None:
        self._paces: dict[str, list[float]] = {}  # measured now, by kind
        self._finished: dict[Path, dict[str, list[Finished]]] = {}  # by pattern of the directories, by kind

    def of(self, task: Task) -> Estimate:
        """What is still to be spent on a task."""
        kind = kind_of(task.spec.config)
        finished = self._read(task).get(kind, [])
        here = [run for run in finished if run.host == platform.node()] or finished
        paces = [run.pace for run in here] or self._paces.get(kind)
        done = len(task.record.epochs) if task.state == "interrupted" else 0
        seconds = statistics.median(paces) * max(0, epochs_of(task.spec.config) - done) if paces else None
        return Estimate(seconds, statistics.median(run.size for run in here) if here else None)

    def learn(self, task: Task, pace: float) -> None:
        """Take `pace` seconds an epoch for runs of the task's kind of which none is finished."""
        self._paces[kind_of(task.spec.config)] = [pace]

    def _read(self, task: Task) -> dict[str, list[Finished]]:
        """The finished runs whose names could be of the task's kind, by kind."""
        cfg = task.spec.config
        parts = [method_word(cfg), "*" + glob.escape(cfg["student"]["name"]), glob.escape(dataset_word(cfg)), "*"]
        pattern = task.spec.directory.with_name("-".join(parts))
        if pattern not in self._finished:
            by_kind = self._finished[pattern] = {}
            for directory in pattern.parent.glob(pattern.name):
                record = Record(directory)
                if record.result and (cost := record.result["cost"].get("train_seconds")):
                    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
                    pace = cost / max(1, epochs_of(record.config))
                    finished = Finished(record.status.get("host", ""), pace, size)
                    by_kind.setdefault(kind_of(record.config), []).append(finished)
        return self._finished[pattern]


def epochs_of(cfg: Mapping[str, Any]) -> int:
    """Epochs that a run trains for."""
    recipe = cfg["recipe"]
    stop = recipe["stop_after"]
    return int(recipe["epochs"] if stop is None else stop)


def kind_of(cfg: Mapping[str, Any]) -> str:
    """What the time of a run's epoch depends on."""
    parts = {
        "methods": [cfg["method"], *cfg["plus"].values()],
        "student": cfg["student"],
        "teacher": network_options(cfg["teacher"]) if needs_teacher(cfg) else None,
        "dataset": {key: value for key, value in cfg["dataset"].items() if key not in ("root", "tree", "download")},
        "imbalance": cfg["imbalance"],
        "batch_size": cfg["recipe"]["batch_size"],
        "trainer": [cfg["trainer"].get(key) for key in ("device", "precision", "compile", "threads", "max_batches")],
    }
    return json.dumps(parts, sort_keys=True)

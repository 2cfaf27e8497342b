"""What runs have left behind, read from their directories. Imports no torch and writes nothing."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdbench.config.groups import content
from kdbench.files import read_json, read_lines


class Record:
    """The directory of one run, whatever its state: the only place that knows the names of its files.

    What has been read is kept, so a `Record` is a view of one moment; make another one to look again.

    Attributes:
        directory: of the run, `<name>-<id>`.
        name, id: of the run.
        weights: file of the student's weights.
        metrics: file with one line an epoch.
        log: file of what was printed.
        checkpoints: folder of the checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name, _, self.id = directory.name.rpartition("-")
        self.weights = directory / "student.safetensors"
        self.metrics = directory / "metrics.jsonl"
        self.log = directory / "train.log"
        self.checkpoints = directory / "checkpoints"

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """`result.json` of a finished run, else None. It is written last: if it is there, everything is."""
        return read_json(self.directory / "result.json")

    @property
    def finished(self) -> dict[str, Any]:
        """The result of a run that is known to be finished.

        Raises:
            ValueError: it is not.
        """
        if self.result is None:
            raise ValueError(f"{self.directory} is not finished")
        return self.result

    @cached_property
    def status(self) -> dict[str, Any]:
        """`status.json`; empty where a run has not begun."""
        return read_json(self.directory / "status.json") or {}

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """`evaluation.json`, what `kdbench evaluate` measured later; empty without one."""
        return read_json(self.directory / "evaluation.json") or {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """`env.json`: machine, versions, command; empty where a run has not begun."""
        return read_json(self.directory / "env.json") or {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration; empty where a run has not begun."""
        if self.result:
            return self.result["config"]
        path = self.directory / "config.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    @property
    def attempt(self) -> str:
        """Name of the run on a server that never forgets one: the id, with `-2`, `-3` ... where it was forced again."""
        again = len(list((self.directory / "previous").glob("*")))
        return f"{self.id}-{again + 1}" if again else self.id

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, one an epoch."""
        return list(read_lines(self.metrics))

    @cached_property
    def state(self) -> str:
        """`finished`, `running`, `failed`, `interrupted`, or `new` where there is no status.

        A run is running while a process holds its lock; a status of `running` without the lock was left by a process
        that was killed.
        """
        if self.result:
            return "finished"
        if self.locked:
            return "running"
        noted: str = self.status.get("state", "new")
        return "interrupted" if noted in ("running", "finished") else noted

    @property
    def locked(self) -> bool:
        """Whether a process holds the run, if only to finish uploading to a mirror."""
        path = self.directory / ".lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True


def default_outputs() -> Path:
    """The folder of all records unless a command names another: what `conf/train.yaml` says."""
    return Path(OmegaConf.create({"outputs": content("train")["outputs"]}).outputs)


def all_records(outputs: Path) -> Iterator[Record]:
    """Every run below `outputs`, by name."""
    for directory in sorted((outputs / "runs").glob("*-*")):
        if directory.is_dir():
            yield Record(directory)

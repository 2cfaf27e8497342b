"""What runs have left behind, read from their directories. Imports no torch, writes nothing."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdbench.config import content
from kdbench.files import read_json, read_lines


class Record:
    """The directory of one run, whatever its state.

    Attributes:
        directory: of the run, `<name>-<id>`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name, _, self.id = directory.name.rpartition("-")

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """`result.json` of a finished run, else None."""
        return read_json(self.directory / "result.json")

    @cached_property
    def status(self) -> dict[str, Any]:
        """`status.json`; empty where a run has not begun."""
        return read_json(self.directory / "status.json") or {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration; empty where a run has not begun."""
        if self.result:
            return self.result["config"]
        path = self.directory / "config.yaml"
        return yaml.safe_load(path.read_text()) if path.exists() else {}

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, one an epoch."""
        return list(read_lines(self.directory / "metrics.jsonl"))

    @cached_property
    def state(self) -> str:
        """`finished`, `running`, `failed`, `interrupted`, or `new` where there is no status.

        Running is what holds its lock; what says that it runs and does not hold it was killed.
        """
        if self.result:
            return "finished"
        if self._locked():
            return "running"
        said: str = self.status.get("state", "new")
        return "interrupted" if said in ("running", "finished") else said

    def _locked(self) -> bool:
        path = self.directory / ".lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True


def default_outputs() -> Path:
    """Root of the records where nobody says another: what conf/train.yaml says, as kdbench-train does."""
    return Path(OmegaConf.create({"outputs": content("train")["outputs"]}).outputs)


def records(outputs: Path) -> Iterator[Record]:
    """Every run below `outputs`, by name."""
    for directory in sorted((outputs / "runs").glob("*-*")):
        if directory.is_dir():
            yield Record(directory)

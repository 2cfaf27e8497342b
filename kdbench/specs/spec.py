"""`RunSpec`: what one run is and what it depends on. Made once by `kdbench.specs.resolve`; nothing changes it after."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdbench.config.frozen import FrozenDict
from kdbench.data.sources import Sizes
from kdbench.records.identity import Identity
from kdbench.records.record import Record


@dataclass(frozen=True)
class RunSpec:
    """One run, resolved.

    Attributes:
        config: the checked configuration, nested and read-only.
        sizes: of its data.
        identity: its id, name and setting, and the facts they are made of.
        role: `teacher`, `distill` or `baseline`.
        dependencies: the runs that must be finished first, by what they are for: `teacher`, and what methods declare.
    """

    config: FrozenDict
    sizes: Sizes
    identity: Identity
    role: str
    dependencies: Mapping[str, "RunSpec"]

    @property
    def id(self) -> str:
        """12 hex digits, from all that changes the result."""
        return self.identity.id

    @property
    def name(self) -> str:
        """For people."""
        return self.identity.name

    @property
    def directory(self) -> Path:
        """Where the run leaves its record."""
        return Path(self.config["outputs"]) / "runs" / f"{self.name}-{self.id}"

    @property
    def record(self) -> Record:
        """What lies in the run's directory now."""
        return Record(self.directory)


class FinishedRun(NamedTuple):
    """A run that another one depends on, brought to its end.

    Attributes:
        spec: what it was.
        record: what it left.
    """

    spec: RunSpec
    record: Record

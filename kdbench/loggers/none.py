"""No mirror: the run leaves only its record."""

from collections.abc import Mapping
from typing import Any

from kdbench.loggers.mirror import RunInfo


class NoMirror:
    """A mirror that ignores everything it receives."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        pass

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Do nothing."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Do nothing."""

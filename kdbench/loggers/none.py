"""No mirror: the record of the run is all there is."""

from collections.abc import Mapping
from typing import Any

from kdbench.loggers.mirror import RunInfo


class Nothing:
    """Takes everything and does nothing."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        pass

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Nothing."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Nothing."""

"""What every mirror of a run has in common: what it is told, and that its errors never reach the run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class RunInfo:
    """What a mirror tells of a run.

    Attributes:
        id: stable over resumes; W&B knows the run by it.
        name: what people read.
        directory: of the run; mirrors write nowhere else.
        group: the setting; its runs differ in their seeds only.
        job_type: `teacher`, `distill` or `baseline`.
        tags: words to filter by.
        config: the resolved configuration, nested plain values.
        resumed: the run continues an earlier attempt.
    """

    id: str
    name: str
    directory: Path
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    resumed: bool


class Mirror(Protocol):
    """A mirror of the record: W&B, say."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        """Open it; `options` is the `logger` group."""

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Take the numbers of a finished epoch: `train/loss`, `train/kd`, `val/accuracy` ..."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Take the final numbers and close: `exit_code` 0 finished, 1 failed, 130 or 143 interrupted."""


class Guarded:
    """A mirror whose first error becomes one warning and switches it off.

    Args:
        kind: of the mirror, for the warning.
        mirror: its class.
        options: the `logger` group.
        run: what the mirror is told of the run.
    """

    def __init__(self, kind: str, mirror: type[Mirror], options: Mapping[str, Any], run: RunInfo) -> None:
        self._kind = kind
        self._on = True
        self._mirror: Mirror | None = None
        with self._guard("start"):
            self._mirror = mirror(options, run)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._on:
                log.warning("%s mirror is off for this run: %s: %s", self._kind, doing, one_line(error))
            self._on = False

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Hand on the numbers of an epoch, unless the mirror is off."""
        if self._mirror and self._on:
            with self._guard("log"):
                self._mirror.log(metrics, epoch)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Hand on the final numbers and close the mirror, even when it is off."""
        # also when it is off: a W&B run left open would take in the process's next one
        mirror, self._mirror = self._mirror, None
        if mirror:
            with self._guard("finish"):
                mirror.finish(summary, exit_code)


def one_line(error: Exception) -> str:
    """Kind and message of an error, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested numbers by keys such as `test/accuracy`."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value

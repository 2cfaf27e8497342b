"""What all mirrors share: their interface, what they know about the run, and the guard around their errors."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class RunInfo:
    """What a mirror knows about its run.

    Attributes:
        id: the same after every resume; W&B identifies the run by it.
        name: the name that people read.
        directory: the run's directory; mirrors write nowhere else.
        group: the setting, shared by runs that differ only in their seeds.
        job_type: `teacher`, `distill` or `baseline`.
        tags: words to filter runs by.
        config: the resolved configuration as nested plain values.
    """

    id: str
    name: str
    directory: Path
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]


class Mirror(Protocol):
    """The interface of a mirror."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        """Open the mirror of a run.

        Args:
            options: the `logger` group.
            run: the run to mirror.
        """

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Receive the metrics of a finished epoch: `train/loss`, `train/kd`, `val/accuracy` ..."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Receive the final numbers and close.

        Args:
            summary: nested parts of the result; empty if there is no result.
            exit_code: 0 if the run finished, 1 if it failed, 130 or 143 if it was interrupted.
        """


class Guarded:
    """A mirror whose first error is logged as one warning and switches the mirror off.

    Args:
        kind: the kind of mirror, for the warning.
        mirror: the class of the mirror.
        options: the `logger` group.
        run: the run to mirror.
    """

    def __init__(self, kind: str, mirror: type[Mirror], options: Mapping[str, Any], run: RunInfo) -> None:
        self._kind = kind
        self._on = True
        self._mirror: Mirror | None = None
        with self._guard("start"):
            self._mirror = mirror(options, run)

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._on:
                log.warning("%s mirror is off for this run: %s: %s", self._kind, action, one_line(error))
            self._on = False

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Pass on the metrics of an epoch, unless the mirror is off."""
        if self._mirror and self._on:
            with self._guard("log"):
                self._mirror.log(metrics, epoch)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Pass on the final numbers and close the mirror, even if it is off."""
        # even if it is off: a W&B run left open would receive the numbers of the next run in this process
        mirror, self._mirror = self._mirror, None
        if mirror:
            with self._guard("finish"):
                mirror.finish(summary, exit_code)


def one_line(error: Exception) -> str:
    """The type of an error and its whole message, on one line.

    The first line of the message, as `status.json` has it for a failed run, is not enough: no log has the traceback.
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping with keys such as `test/accuracy`."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value

"""Writing the directory of a run: its lock, its status and its files. Knows nothing of distillation or of torch."""

import json
import logging
import os
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdbench.config.frozen import plain
from kdbench.errors import UserError
from kdbench.files import write_json, write_text
from kdbench.records.environment import environment
from kdbench.records.record import Record

log = logging.getLogger("kdbench")


class RecordWriter:
    """Writes the record of one run.

    Attributes:
        record: where everything is written.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.record = Record(directory)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run's lock. If a live process holds it, wait until it is free; a dead one's is free already.

        Raises:
            UserError: the directory cannot be made or written.
        """
        directory = self.record.directory
        try:
            self.record.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = FileLock(directory / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                owner = Record(directory).status.get("pid", "?")
                log.info("waiting for %s, which process %s is running", self.record.name, owner)
                lock.acquire()
        except OSError as error:
            raise UserError(f"outputs={directory} cannot be written: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> None:
        """Move the record of an earlier attempt into `previous/<time>/`: nothing is lost."""
        directory = self.record.directory
        old = [item for item in directory.iterdir() if item.name not in ("previous", ".lock")]
        if any(item.name == "status.json" for item in old):
            previous = directory / "previous"
            count = len(list(previous.glob("*")))  # two within the same second get different names
            place = previous / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{count + 1}"
            place.mkdir(parents=True)
            for item in old:
                shutil.move(item, place / item.name)
            self.record.checkpoints.mkdir()

    @contextmanager
    def recorded(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Keep configuration, environment, log and status while the run is under way, whatever ends it."""
        directory = self.record.directory
        write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain(config))))
        write_json(directory / "env.json", environment())
        self.status(state="running", reason=None, id=self.record.id, name=self.record.name, pid=os.getpid(),
                    host=platform.node(), started=_now())  # fmt: skip
        handler = logging.FileHandler(self.record.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        thread = threading.get_ident()
        handler.addFilter(lambda message: message.thread == thread)  # others are of runs that are trained together
        log.addHandler(handler)
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self._note_end("interrupted" if interrupted else "failed", reason(error))
            raise
        else:
            self.status(state="finished", reason=None)
        finally:
            log.removeHandler(handler)
            handler.close()

    def status(self, **news: Any) -> None:
        """Merge `news` into `status.json`."""
        directory = self.record.directory
        write_json(directory / "status.json", {**Record(directory).status, **news, "updated": _now()})

    def restart_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep only these rows of `metrics.jsonl`."""
        write_text(self.record.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Add the row of a finished epoch to `metrics.jsonl`."""
        with self.record.metrics.open("a") as handle:
            handle.write(json.dumps(row) + "\n")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, which makes the run finished."""
        write_json(self.record.directory / "result.json", result)

    def add_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Merge later measurements of a finished run into `evaluation.json`."""
        directory = self.record.directory
        write_json(directory / "evaluation.json", {**Record(directory).evaluation, **evaluation})

    def _note_end(self, state: str, why: str) -> None:
        try:
            with self.record.log.open("a") as handle:
                traceback.print_exc(file=handle)
            self.status(state=state, reason=why)
        except OSError as error:
            # the original error matters more; it is raised again by the caller
            log.error("could not note in %s that the run %s: %s", self.record.directory, state, error)


def reason(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

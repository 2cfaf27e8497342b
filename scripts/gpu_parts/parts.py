"""What a part is, and how it is done: a process of its own with a limited time."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdbench.errors import one_line_of
from kdbench.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")  # the imports take longer than many a part
SETTINGS = {
    "float32": ["trainer.precision=32-true"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "bf16 compiled": ["trainer.precision=bf16-mixed", "trainer.compile=true"],
}


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        smoke: the tiniest form of everything, on the CPU.
        out: the folder for all that is written.
        overrides: of every run.
    """

    smoke: bool
    out: Path
    overrides: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return torch.device("cpu" if self.smoke else "cuda")

    @property
    def pairs(self) -> dict[str, list[str]]:
        """Teachers and students whose speed is measured, as overrides."""
        pairs = [("resnet8", "resnet8")] if self.smoke else [("resnet56", "resnet20"), ("resnet32x4", "resnet8x4")]
        return {f"{teacher}->{student}": [f"teacher={teacher}", f"student={student}"] for teacher, student in pairs}

    def run(self, *overrides: str) -> list[str]:
        """The overrides of a run on the data of this report."""
        device = "trainer.device=cpu" if self.smoke else "trainer.device=gpu"
        dataset = ["dataset=digits", "recipe.batch_size=16"] if self.smoke else ["dataset=cifar100"]
        return [*dataset, device, "dataset.val_fraction=0.0", "logger=none", *overrides, *self.overrides]


class Time(NamedTuple):
    """Seconds that a task has.

    Attributes:
        share: if it leaves as much to each of the tasks after it.
        left: until the end of the part.
    """

    share: float
    left: float


class Outcome(NamedTuple):
    """What a task has shown.

    Attributes:
        text: for the table.
        figures: for the JSON file.
        good: whether it is as it should be.
    """

    text: str
    figures: Mapping[str, Any] = {}
    good: bool = True


class Task(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the row.
        work: from the time that it has to its outcome; whatever it raises becomes the row.
    """

    name: str
    work: Callable[[Time], Outcome]


class Part(NamedTuple):
    """Some tasks that run in one process.

    Attributes:
        share: of the whole time, at most; what a part does not need is left to those after it.
        tasks: from the plan to what is to be done.
    """

    share: float
    tasks: Callable[[Plan], list[Task]]


@dataclass
class Row:
    """A row of the table: a task, and its state, `done`, `wrong`, `failed`, `skipped` or `stopped`."""

    part: str
    task: str
    state: str
    text: str
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)


def rows_of(name: str, part: Part, plan: Plan, seconds: float) -> list[Row]:
    """Do a part in a process of its own, which is killed with all that it has started when its time is over."""
    plan.out.mkdir(parents=True, exist_ok=True)
    lines, log = plan.out / f"{name}.jsonl", plan.out / f"{name}.log"
    lines.unlink(missing_ok=True)
    process = FORK.Process(target=_apart, args=(log, partial(carry_out, name, part, plan, 0.95 * seconds, lines)))
    start = time.monotonic()
    process.start()
    try:
        process.join(seconds)
    finally:
        stopped = process.is_alive()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    tasks, *done = list(read_lines(lines)) if lines.exists() else [["the part"]]
    rows = [Row(**each) for each in done]
    why = f"after {seconds:.0f} s" if stopped else f"the process ended with exit code {process.exitcode}; see {log}"
    for number, task in enumerate(tasks[len(rows) :]):
        state = "skipped" if number else "stopped" if stopped else "failed"
        rows.append(Row(name, task, state, why, 0.0 if number else time.monotonic() - start))
    return rows


def _apart(log: Path, work: Callable[[], None]) -> None:
    """Work with a group of processes and a log of its own."""
    os.setsid()
    with log.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        work()


def carry_out(name: str, part: Part, plan: Plan, seconds: float, lines: Path) -> None:
    """Do the tasks of a part; their names and a row for each go to a file, one a line."""
    end = time.monotonic() + seconds
    tasks = part.tasks(plan)
    with lines.open("w") as file:

        def write(line: object) -> None:
            print(json.dumps(line), file=file, flush=True)

        write([task.name for task in tasks])
        for number, task in enumerate(tasks):
            left = end - time.monotonic()
            if left <= 0:
                write(asdict(Row(name, task.name, "skipped", f"the {seconds:.0f} s of this part are over")))
                continue
            start = time.monotonic()
            try:
                text, figures, good = task.work(Time(left / (len(tasks) - number), left))
                row = Row(name, task.name, "done" if good else "wrong", text, figures=figures)
            except Exception as error:  # whatever fails, the other tasks go on
                traceback.print_exc()
                row = Row(name, task.name, "failed", one_line_of(error))
            row.seconds = time.monotonic() - start
            write(asdict(row))

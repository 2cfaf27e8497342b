"""Several runs of one teacher, trained together in this process: each batch is answered by the teacher once."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from kdbench.console import show_messages
from kdbench.errors import RunFailed, UserError
from kdbench.specs.spec import FinishedRun, RunSpec
from kdbench.training import conduct, memory
from kdbench.training.lockstep import Lockstep, Member

log = logging.getLogger("kdbench")

_RESERVE = 0.15  # share of the memory that must be free for one more run to begin beside others


class Postponed(Exception):
    """A run has not begun, because there is not enough memory for it beside the others."""


def conduct_together(specs: Sequence[RunSpec]) -> list[Exception | None]:
    """Bring runs to their ends, of which `kdbench.sweeps.groups` says that they see the same batches of one teacher.

    Each result is bit for bit that of the run alone (on the CPU): each training has its own optimiser, random streams,
    record, mirror and checkpoints. One that fails leaves the others as they are.

    Args:
        specs: of the runs.

    Returns:
        For each run None, or why it was not finished: what `conduct` raises, or `Postponed`.

    Raises:
        KeyboardInterrupt, SystemExit: as received; all runs have noted that they are interrupted.
    """
    show_messages()
    outcomes: list[Exception | None] = [None] * len(specs)
    ready, trainings = [], []
    dependencies: dict[Path, FinishedRun] = {}
    for number, spec in enumerate(specs):
        try:
            finished = _ready(spec, dependencies)
        except (UserError, RunFailed) as error:
            outcomes[number] = error
            continue
        ready.append(number)
        trainings.append(partial(conduct.train, spec, finished))
    results = Lockstep(len(trainings), _Admission(specs[0].config["trainer"]["device"])).run(trainings)
    for number, result in zip(ready, results, strict=True):
        if isinstance(result.error, Exception):
            outcomes[number] = result.error
        elif result.error is not None:
            raise result.error
        else:
            log.info("record: %s", specs[number].directory)
    return outcomes


class _Admission:
    """Lets runs begin as long as there is memory for them; the first one always."""

    def __init__(self, device: str) -> None:
        on_cuda = device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if on_cuda else "cpu")
        self.begun = False

    def __call__(self, member: Member) -> None:
        if self.begun and memory.free_share(self.device) < _RESERVE:
            raise Postponed("it has not begun: not enough memory to train it beside the others")
        self.begun = True


def _ready(spec: RunSpec, dependencies: dict[Path, FinishedRun]) -> dict[str, FinishedRun]:
    """Check a run and finish those that it needs and that no other run of the group has needed already."""
    conduct.check_device(spec.config["trainer"])
    conduct.rehearse(spec)
    for needed in spec.dependencies.values():
        if needed.directory not in dependencies:
            dependencies[needed.directory] = FinishedRun(needed, conduct.conduct(needed))
    return {name: dependencies[needed.directory] for name, needed in spec.dependencies.items()}

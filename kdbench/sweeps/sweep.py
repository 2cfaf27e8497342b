"""A sweep: carrying out the jobs of a grid, in this process or in others. Imports no torch."""

import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.conf import HydraConf
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from rich.table import Table

from kdbench.config.check import check
from kdbench.config.hydra_private import error_of
from kdbench.console import show, show_messages
from kdbench.errors import RunFailed, UserError
from kdbench.records.record import Record
from kdbench.records.writer import reason
from kdbench.specs.resolve import resolve
from kdbench.sweeps import isolated, plan
from kdbench.sweeps.estimates import Estimates
from kdbench.sweeps.grid import Grid, Refused, Task
from kdbench.sweeps.groups import companions, limit_of
from kdbench.training.conduct import conduct

log = logging.getLogger("kdbench")

# By name: Hydra re-executes plug-in modules when it looks for them, which makes a second class of the same name.
_IN_PROCESS = "BasicLauncher"


class Failure(NamedTuple):
    """How a job of a sweep failed.

    Attributes:
        label: of the job.
        run: its name, or the overrides of a job that is no run.
        why: the reason.
        log: path of the run's log; empty where there is none.
    """

    label: str
    run: str
    why: str
    log: str


class Sweep:
    """Carries out a grid.

    Finished runs are not launched again, a run that two jobs describe is launched once, missing teachers are trained
    before the jobs that need them, a failing job never stops the others, and the failures are listed at the end.

    Args:
        grid: its jobs.
        launcher: Hydra's; every launcher but the basic one runs jobs in other processes.
    """

    def __init__(self, grid: Grid, launcher: Launcher) -> None:
        self.grid = grid
        self.launcher = launcher
        self.failures: list[Failure] = []
        self._failed: set[Path] = set()  # directories of runs
        self._launched = 0

    def carry_out(self) -> None:
        """Run every job that is not done.

        Raises:
            UserError: `trainer.together` with a launcher that gives each job a process of its own.
            RunFailed: some jobs failed; they have been listed.
        """
        in_process = type(self.launcher).__name__ == _IN_PROCESS
        if not in_process and any(limit_of(task.spec) > 1 for task in self.grid.tasks):
            raise UserError("trainer.together is not possible with this launcher, only 1: use hydra/launcher=basic")
        show_messages()
        log.info("%s", plan.summary(plan.rows_of(self.grid, Estimates())))
        for job in self.grid.jobs:
            if isinstance(job, Refused):
                self._fail(job.label, " ".join(job.overrides), job.why, "", announce=True)
        todo = [*self.grid.teachers, *(job for job in self.grid.tasks if job.state != "done")]
        if in_process:
            self._one_by_one(todo)
        else:
            self._all_at_once(todo)
        self._conclude()

    def _one_by_one(self, todo: list[Task]) -> None:
        """In this process; runs that another process is training come last, and are waited for."""
        while todo:
            task = next((task for task in todo if not _busy(task)), todo[0])
            todo.remove(task)
            if task.state == "done" or self._hopeless(task):
                continue
            group = companions(task, (other for other in todo if other.state != "done" and not _busy(other)))
            for other in group[1:]:
                todo.remove(other)
            if len(group) > 1:
                todo = self._together(group) + todo
            else:
                self._launch(group)

    def _all_at_once(self, todo: list[Task]) -> None:
        """In other processes: first what needs no missing teacher, runs of other sweeps last; then the rest."""
        missing = {task.spec.directory for task in todo}
        ready = [task for task in todo if not missing & set(task.needs)]
        for batch in (ready, [task for task in todo if task not in ready]):
            self._launch(sorted((task for task in batch if not self._hopeless(task)), key=_busy))

    def _together(self, tasks: list[Task]) -> list[Task]:
        """In this process and at once, as runs of one teacher; returns those for which there was no memory."""
        from kdbench.training.together import Postponed, conduct_together  # it imports torch

        postponed = []

        for task in tasks:
            log.info("%s: %s", task.label, " ".join(task.overrides))
        for task, error in zip(tasks, conduct_together([task.spec for task in tasks]), strict=True):
            if isinstance(error, Postponed):
                log.info("%s: %s", task.label, error)
                postponed.append(task)
            elif error is not None:
                print(f"error: {task.label} ({' '.join(task.overrides)}): {error}", file=sys.stderr, flush=True)
                self._note(task, _why(error))
        return postponed

    def _launch(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        try:
            shared = self._share_of_cores()
            jobs = [[*task.overrides, f"hydra.job.name='{task.label}'", *shared] for task in tasks]
            returns: Sequence[JobReturn | None] = self.launcher.launch(jobs, initial_job_idx=self._launched)
        except Exception as stopped:  # the launcher's own: a worker that died, a cluster that does not answer
            log.error("the launcher stopped: %s", reason(stopped))
            returns = [None] * len(tasks)
        self._launched += len(tasks)
        for task, returned in zip(tasks, returns, strict=True):
            if returned is None:
                why = "" if task.state == "done" else "not done: the launcher stopped"
            elif returned.status == JobStatus.COMPLETED:
                why = ""
            else:
                why = _why(error_of(returned))
            if why:
                self._note(task, why)
        if self.failures:
            gc.collect()  # frees what the traceback of a failed job holds, which the next job needs

    def _share_of_cores(self) -> list[str]:
        """Overrides that give a job its share of the cores, unless the user has set the threads.

        The share depends on the whole grid rather than on the jobs that are left: results depend on the number of
        threads, and a job that is continued must end as if it had never been interrupted.
        """
        from kdbench.training import threads  # it imports joblib, which a single run that is finished does without

        config: DictConfig | None = getattr(self.launcher, "config", None)  # of every launcher that Hydra has set up
        if config is None or threads.VARIABLE in os.environ or threads.VARIABLE in config.hydra.job.env_set:
            return []
        share = threads.share_of_job(config.hydra.launcher, len(self.grid.tasks))
        return [f"+hydra.job.env_set.{threads.VARIABLE}='{share}'"] if share else []

    def _note(self, task: Task, why: str) -> None:
        self._fail(task.label, task.spec.name, why, _log_of(task.record))
        self._failed.add(task.spec.directory)

    def _hopeless(self, task: Task) -> bool:
        """Whether the task waits for a teacher that has failed in this sweep."""
        if not self._failed & set(task.needs):
            return False
        self._fail(task.label, task.spec.name, "its teacher failed", "", announce=True)
        return True

    def _fail(self, label: str, run: str, why: str, log_path: str, announce: bool = False) -> None:
        self.failures.append(Failure(label, run, why, log_path))
        if announce:  # otherwise the job itself has printed it
            log.error("%s (%s): %s", label, run, why)

    def _conclude(self) -> None:
        total = len(self.grid.jobs)
        if not self.failures:
            log.info("all %d jobs done", total)
            return
        table = Table(title="failed", title_justify="left")
        for column in ("job", "run", "reason", "log"):
            table.add_column(column, overflow="fold")
        for failure in self.failures:
            table.add_row(*failure)
        show(table)
        jobs = sum(failure.label.startswith("job") for failure in self.failures)
        raise RunFailed(f"{jobs} of {total} jobs failed; the same command tries them again")


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else getattr(error, "why", None) or reason(error)


def _busy(task: Task) -> bool:
    """Whether another process is training the task's run, or a run that it needs."""
    return any(Record(directory).state == "running" for directory in (task.spec.directory, *task.needs))


def _log_of(record: Record) -> str:
    return str(record.log) if record.log.exists() else ""


def job(cfg: DictConfig, hydra: HydraConf) -> Record:
    """Carry out one job of a sweep, in a process of its own unless the launcher is the basic one.

    Raises:
        UserError, RunFailed: printed already; the sweep goes on with its other jobs.
    """
    show_messages()
    overrides = list(hydra.overrides.task)
    label = hydra.job.name if "/" in str(hydra.job.name) else f"job {hydra.job.num}"
    try:
        spec = resolve(check(cfg, hydra.runtime.choices))
        _check_direction(hydra)
        log.info("%s: %s", label, " ".join(overrides))
        if str(hydra.launcher["_target_"]).endswith(f".{_IN_PROCESS}"):
            return conduct(spec)
        return isolated.conduct(spec, overrides)
    except (UserError, RunFailed) as error:
        print(f"error: {label} ({' '.join(overrides)}): {error}", file=sys.stderr, flush=True)
        raise
    except Exception:  # Hydra would print it only at the end
        traceback.print_exc()
        raise


def _check_direction(hydra: HydraConf) -> None:
    if "minimize" in str(hydra.sweeper.get("direction", "")):  # the default of Optuna's sweeper
        raise UserError(
            "hydra.sweeper.direction=minimize is not allowed: the objective is the validation accuracy; "
            "set hydra.sweeper.direction=maximize"
        )

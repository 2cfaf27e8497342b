"""The grid that a command line means: its jobs, the run of each, and the runs they wait for. Imports no torch."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from kdbench.config.check import check
from kdbench.config.compose import CONFIG_ERRORS, hydra_at_conf
from kdbench.config.explain import explain
from kdbench.config.grid_composer import GridComposer
from kdbench.errors import UserError
from kdbench.records.record import Record
from kdbench.specs.resolve import resolve
from kdbench.specs.spec import RunSpec


@dataclass(eq=False)
class Task:
    """A run to be done: of a job of the grid, or of a teacher that jobs wait for.

    Attributes:
        label: `job 3/24` or `teacher 1/2`.
        overrides: those that make it.
        spec: of the run.
        waiting: how many jobs need it, for a teacher.
    """

    label: str
    overrides: list[str]
    spec: RunSpec
    waiting: int = 0

    @property
    def record(self) -> Record:
        """What lies in the run's directory now."""
        return self.spec.record

    @property
    def needs(self) -> list[Path]:
        """Directories of the runs that must be finished first."""
        return [spec.directory for spec in self.spec.dependencies.values()]

    @property
    def state(self) -> str:
        """`done`, `to do`, `running`, `failed` or `interrupted`."""
        state = self.record.state
        if self.spec.config["force"] and state == "finished":
            return "to do"
        return {"finished": "done", "new": "to do"}.get(state, state)


@dataclass
class Refused:
    """A job whose configuration is wrong."""

    label: str
    overrides: list[str]
    why: str


@dataclass
class Same:
    """A job that is the same run as an earlier one, as `method=ce` with two teachers is."""

    label: str
    overrides: list[str]
    as_label: str


class Grid:
    """All jobs of a sweep.

    Attributes:
        jobs: in the order of the grid.
        teachers: runs that jobs depend on, that are not done and not jobs of the grid themselves; each once.

    Args:
        loader: Hydra's.
        master: the primary configuration, composed for a multirun.

    Raises:
        UserError: the overrides do not describe a grid, or no job of it is possible.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
        given, fixed = (list(map(str, master.hydra.overrides[part])) for part in ("task", "hydra"))
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *given])
        combined = combinations(parsed)
        composer = GridComposer(loader, str(master.hydra.job.config_name), fixed)
        self.jobs: list[Task | Refused | Same] = []
        self._first: dict[Path, Task] = {}
        self._explained: dict[str, str] = {}
        for number, overrides in enumerate(combined, 1):
            self.jobs.append(self._job(f"job {number}/{len(combined)}", overrides, composer))
        refusals = {job.why for job in self.jobs if isinstance(job, Refused)}
        if len(refusals) == 1 and all(isinstance(job, Refused) for job in self.jobs):
            raise UserError(refusals.pop())
        self.teachers = self._missing_teachers()

    @property
    def tasks(self) -> list[Task]:
        """The jobs that are runs of their own."""
        return [job for job in self.jobs if isinstance(job, Task)]

    def _job(self, label: str, overrides: list[str], composer: GridComposer) -> Task | Refused | Same:
        try:
            spec = resolve(check(*composer.compose(overrides)))
        except UserError as error:
            return Refused(label, overrides, str(error))
        except (*CONFIG_ERRORS, ValueError) as error:  # Hydra's own ValueErrors too: method=null
            # finding the nearest word means composing again
            if (text := str(error)) not in self._explained:
                self._explained[text] = explain(error, overrides)
            return Refused(label, overrides, self._explained[text])
        if spec.directory in self._first:
            return Same(label, overrides, self._first[spec.directory].label)
        job = self._first[spec.directory] = Task(label, overrides, spec)
        return job

    def _missing_teachers(self) -> list[Task]:
        teachers: dict[Path, Task] = {}
        for job in self.tasks:
            if job.state == "done":
                continue
            for spec in job.spec.dependencies.values():
                if spec.directory not in self._first:
                    task = Task("", [*job.overrides, "stage=teachers"], spec)
                    teachers.setdefault(spec.directory, task).waiting += 1
        missing = [teacher for teacher in teachers.values() if teacher.state != "done"]
        for number, teacher in enumerate(missing, 1):
            teacher.label = f"teacher {number}/{len(missing)}"
        return missing


def combinations(parsed: list[Override]) -> list[list[str]]:
    """The overrides of every job of a grid, in Hydra's order: the last list runs fastest.

    Raises:
        UserError: an interval, which only a search can sweep over.
    """
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line} is not allowed: a grid takes lists, choice(...) and range(...)")
    return [list(overrides) for overrides in itertools.product(*choices.values())]


def read(overrides: list[str]) -> Grid:
    """The grid of a command line, outside of a sweep.

    Raises:
        UserError: as `Grid`, or an override that is wrong for all jobs.
    """
    with hydra_at_conf() as loader:
        try:
            master = loader.load_configuration("train", overrides, run_mode=RunMode.MULTIRUN)
            if "optuna" in str(master.hydra.sweeper.get("_target_")):
                raise UserError("kdbench plan lists the jobs of a grid; a search chooses its jobs while it runs")
            return Grid(loader, master)
        except CONFIG_ERRORS as error:
            raise UserError(explain(error, overrides)) from error

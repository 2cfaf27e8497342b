"""The grid that a command line means: its jobs, the run of each, and the teachers they wait for. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from kdbench import config, experiment
from kdbench.composer import Composer
from kdbench.errors import UserError
from kdbench.records import Record
from kdbench.run import Run


@dataclass
class Task:
    """A run to be done: of a job of the grid, or of a teacher that jobs wait for.

    Attributes:
        label: `job 3/24` or `teacher 1/2`.
        words: the overrides that make it.
        cfg: the checked configuration of the run.
        run: what it will leave behind.
        teachers: directories of the teachers' runs that it needs.
        waiting: how many jobs need it, for a teacher.
    """

    label: str
    words: list[str]
    cfg: dict[str, Any]
    run: Run
    teachers: list[Path] = field(default_factory=list)
    waiting: int = 0

    @property
    def record(self) -> Record:
        """What lies in the run's directory now."""
        return Record(self.run.directory)

    @property
    def state(self) -> str:
        """`done`, `to do`, `running`, `failed` or `interrupted`."""
        state = self.record.state
        if self.cfg["force"] and state == "finished":
            return "to do"
        return {"finished": "done", "new": "to do"}.get(state, state)


@dataclass
class Refused:
    """A job that cannot be: its configuration is wrong."""

    label: str
    words: list[str]
    why: str


@dataclass
class Same:
    """A job that is the same run as an earlier one, as `method=ce` with two teachers is."""

    label: str
    words: list[str]
    as_label: str


class Grid:
    """All jobs of a sweep.

    Attributes:
        jobs: in the order of the grid.
        teachers: runs that are not done and no jobs of the grid themselves, each once.

    Args:
        loader: Hydra's.
        master: the primary configuration, composed for a multirun.

    Raises:
        UserError: a sweep that is no grid, or a grid of which no job can be.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        params = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
        given, fixed = (list(map(str, master.hydra.overrides[part])) for part in ("task", "hydra"))
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *given])
        [words] = BasicSweeper.split_arguments(parsed, None)
        composer = Composer(loader, str(master.hydra.job.config_name), fixed)
        self.jobs: list[Task | Refused | Same] = []
        self._seen: dict[Path, Task] = {}
        self._explained: dict[str, str] = {}
        for number, each in enumerate(words, 1):
            self.jobs.append(self._job(f"job {number}/{len(words)}", each, composer))
        refusals = {job.why for job in self.jobs if isinstance(job, Refused)}
        if len(refusals) == 1 and all(isinstance(job, Refused) for job in self.jobs):
            raise UserError(refusals.pop())
        self.teachers = self._teachers()

    @property
    def tasks(self) -> list[Task]:
        """The jobs that are runs of their own."""
        return [job for job in self.jobs if isinstance(job, Task)]

    def _job(self, label: str, words: list[str], composer: Composer) -> Task | Refused | Same:
        try:
            cfg = config.check(*composer.compose(words))
            experiment.check(cfg)
            run = experiment.run_of(cfg)
        except UserError as error:
            return Refused(label, words, str(error))
        except (*config.CONFIG_ERRORS, ValueError) as error:  # Hydra's own ValueErrors too: method=null
            # to find the nearest word means to compose again
            if (text := str(error)) not in self._explained:
                self._explained[text] = config.explain(error, words)
            return Refused(label, words, self._explained[text])
        if run.directory in self._seen:
            return Same(label, words, self._seen[run.directory].label)
        job = self._seen[run.directory] = Task(label, words, cfg, run)
        return job

    def _teachers(self) -> list[Task]:
        found: dict[Path, Task] = {}
        for job in self.tasks:
            if job.state == "done":
                continue
            for own in experiment.teachers_of(job.cfg):
                run = experiment.run_of(own)
                job.teachers.append(run.directory)
                if run.directory not in self._seen:
                    words = [*job.words, "stage=teachers"]
                    teacher = found.setdefault(run.directory, Task("", words, own, run))
                    teacher.waiting += 1
        missing = [teacher for teacher in found.values() if teacher.state != "done"]
        for number, teacher in enumerate(missing, 1):
            teacher.label = f"teacher {number}/{len(missing)}"
        return missing


def read(overrides: list[str]) -> Grid:
    """The grid of a command line, outside of a sweep.

    Raises:
        UserError: as `Grid`, or an override that is wrong for all jobs.
    """
    with config.hydra_at_conf() as loader:
        try:
            master = loader.load_configuration("train", overrides, run_mode=RunMode.MULTIRUN)
            if "optuna" in str(master.hydra.sweeper.get("_target_")):
                raise UserError("a search chooses its jobs as it goes; kdbench plan lists grids")
            return Grid(loader, master)
        except config.CONFIG_ERRORS as error:
            raise UserError(config.explain(error, overrides)) from error

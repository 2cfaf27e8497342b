"""Mirrors of a run's record: W&B, CSV, TensorBoard or none.

The truth is `metrics.jsonl` and `result.json` in the run's directory. A mirror gets the same numbers, once an
epoch, and can neither fail nor hang the run: its first error becomes one warning, and from then on it is off.
"""

import csv
import importlib.util
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdbench.errors import UserError
from kdbench.files import read_lines, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run

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


class Logger(Protocol):
    """A mirror."""

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Take the numbers of a finished epoch: `train/loss`, `train/kd`, `val/accuracy` ..."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Take the final numbers and close: `exit_code` 0 finished, 1 failed, 130 or 143 interrupted."""


def check(options: dict[str, Any]) -> None:
    """Refuse, before any training, a mirror that cannot work.

    Args:
        options: the `logger` group.

    Raises:
        UserError: an unknown kind, or TensorBoard is not installed.
    """
    kind = options["kind"]
    if kind not in _KINDS:
        raise UserError(f"logger.kind={kind} is not allowed: it must be one of {', '.join(_KINDS)}")
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard needs a package: pip install kdbench[tensorboard]")


def start(options: dict[str, Any], run: RunInfo) -> Logger:
    """Open the mirror that `options` (the `logger` group) asks for.

    Raises:
        UserError: see `check`.
    """
    check(options)
    return _Guarded(options, run)


class _Guarded:
    """Any mirror, with its errors turned into one warning."""

    def __init__(self, options: dict[str, Any], run: RunInfo) -> None:
        self._kind = options["kind"]
        self._on = True
        self._mirror: Logger | None = None
        with self._guard("start"):
            self._mirror = _KINDS[self._kind](options, run)

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._on:
                log.warning("%s mirror is off for this run: %s: %s", self._kind, doing, _one_line(error))
            self._on = False

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        if self._mirror and self._on:
            with self._guard("log"):
                self._mirror.log(metrics, epoch)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        # also when it is off: a W&B run left open would take in the process's next one
        mirror, self._mirror = self._mirror, None
        if mirror:
            with self._guard("finish"):
                mirror.finish(summary, exit_code)


class _Nothing:
    def __init__(self, options: dict[str, Any], run: RunInfo) -> None:
        pass

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        pass

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        pass


class _Csv:
    """`metrics.csv`, made anew from `metrics.jsonl` each time: after a resume it is whole."""

    def __init__(self, options: dict[str, Any], run: RunInfo) -> None:
        self._source, self._target = run.directory / "metrics.jsonl", run.directory / "metrics.csv"

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        self._rewrite()

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        self._rewrite()

    def _rewrite(self) -> None:
        rows = list(read_lines(self._source))
        columns = dict.fromkeys(["epoch", *(key for row in rows for key in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._target, text.getvalue())


class _TensorBoard:
    """Event files in `tensorboard/`; the final numbers are the scalars `final/...`."""

    def __init__(self, options: dict[str, Any], run: RunInfo) -> None:
        self._directory = run.directory / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def _open(self, purge_step: int | None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._directory, purge_step=purge_step)

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        # an earlier attempt may have got further than the checkpoint this one continues from
        self._writer = self._writer or self._open(purge_step=epoch)
        self._epoch = epoch
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        writer = self._writer or self._open(purge_step=None)
        for key, value in _flat(summary):
            if isinstance(value, int | float):
                writer.add_scalar(f"final/{key}", value, self._epoch)
        writer.close()


# ------------------------------------------------------------------------------------------------ W&B

_SETTINGS: dict[str, Any] = {
    # neither an unreachable server nor a slow one may hold up the run: seconds
    "init_timeout": 20.0,
    "finish_timeout": 30.0,
    "finish_timeout_raises": True,
    # numbers and configuration only: train.log and env.json have the rest
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

# what wandb heeds before it knows a run's settings: it would chat, and report on itself even when offline
_ENVIRONMENT = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def wandb_mode(wanted: str) -> tuple[str, str]:
    """Mode in which W&B would run, and why. Never prompts and does not use the network.

    Args:
        wanted: `auto`, `online`, `offline` or `disabled`; `auto` follows `WANDB_MODE` if that is set.

    Returns:
        (`online`, `offline` or `disabled`; the reason).

    Raises:
        wandb.errors.AuthenticationError: a key is set, but it cannot be one.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    reason = f"logger.mode={wanted}"
    if wanted == "auto" and (preset := os.environ.get("WANDB_MODE")):
        wanted, reason = preset, "WANDB_MODE"
    if wanted in ("offline", "disabled"):
        return wanted, reason
    return ("online", "a key was found") if _has_key() else ("offline", "no key: `wandb login` stores one")


@cache  # wandb.login refuses while a run is open
def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


class _Wandb:
    """A W&B run of our own: same id after a resume, one step an epoch, final numbers in the summary."""

    def __init__(self, options: dict[str, Any], run: RunInfo) -> None:
        # its helper process logs under the home directory, or on the screen where it cannot
        os.environ.setdefault("WANDB_CACHE_DIR", str(run.directory.absolute()))
        mode, reason = wandb_mode(options["mode"])
        level = logging.INFO
        try:
            self._run = self._open(mode, options, run)
        except Exception as error:
            if mode != "online":
                raise
            mode, reason, level = "offline", _one_line(error), logging.WARNING
            self._abandon()
            self._run = self._open(mode, options, run)
        self._rows = run.directory / "metrics.jsonl"
        self._whole = False
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        if mode == "online":
            log.info("W&B online: %s", self._run.url)
        elif mode == "offline":
            log.log(level, "W&B offline (%s); to upload: wandb sync %s", reason, self._run.settings.sync_dir)

    def _open(self, mode: str, options: dict[str, Any], run: RunInfo) -> "Run":
        import wandb

        # the names that start with x_ are private to wandb and may go
        settings = {name: value for name, value in _SETTINGS.items() if name in wandb.Settings.model_fields}
        return wandb.init(
            id=run.id,
            name=run.name,
            project=options["project"],
            entity=options["entity"],
            group=options["group"] or run.group,
            job_type=run.job_type,
            # W&B refuses longer ones
            tags=[tag[:64] for tag in dict.fromkeys([*run.tags, *options["tags"]])],
            config=_without_periods(run.config),
            dir=run.directory,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(**settings),
        )

    @staticmethod
    def _abandon() -> None:
        """End wandb's helper process, which after a failed start holds the run's id as in use."""
        import wandb

        # it passes the helper's exit code on to ours
        with suppress(SystemExit):
            wandb.teardown()

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        self._catch_up(before=epoch)
        # with the epoch as the step, epochs that a resumed run repeats are not doubled
        self._run.log({**metrics, "epoch": epoch}, step=epoch, commit=True)

    def _catch_up(self, before: float = math.inf) -> None:
        """Repeat the epochs of earlier attempts: of one that was killed, W&B's own file holds nothing."""
        if not self._whole:
            self._whole = True
            for row in read_lines(self._rows):
                if row["epoch"] < before:
                    told = {key: value for key, value in row.items() if key != "stage"}
                    self._run.log(told, step=row["epoch"], commit=True)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        try:
            self._catch_up()
            # a list, of classes say, is no column of a table and no point of a plot: result.json has it
            self._run.summary.update({key: value for key, value in _flat(summary) if not isinstance(value, list)})
        finally:
            self._close(exit_code)

    def _close(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError as error:
            where = self._run.settings.sync_dir
            raise TimeoutError(f"not all was uploaded; to upload the rest: wandb sync {where}") from error


_KINDS: dict[str, Callable[[dict[str, Any], RunInfo], Logger]] = {
    "wandb": _Wandb,
    "csv": _Csv,
    "tensorboard": _TensorBoard,
    "none": _Nothing,
}


# ------------------------------------------------------------------------------------------------ helpers


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested numbers by keys such as `test/accuracy`."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _without_periods(node: Any) -> Any:
    """The same configuration with no period in a key: W&B takes one for nesting."""
    if isinstance(node, Mapping):
        return {str(key).replace(".", "_"): _without_periods(value) for key, value in node.items()}
    return node

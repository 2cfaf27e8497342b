"""The W&B mirror: online if an API key is configured, otherwise offline into the run's directory."""

import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from kdbench.loggers.mirror import RunInfo, flat, one_line
from kdbench.records.record import Record

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger("kdbench")

_SETTINGS: dict[str, Any] = {
    # timeouts in seconds: neither an unreachable server nor a slow one may hold up the run
    "init_timeout": 20.0,
    "finish_timeout": 30.0,
    "finish_timeout_raises": True,
    # only numbers and the configuration: train.log and env.json have the rest
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

# Read by wandb before it has a run's settings: without them it prints messages, and reports its errors even if offline.
_ENVIRONMENT = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def wandb_mode(requested: str) -> tuple[str, str]:
    """The mode in which W&B would run, and the reason for it. Never prompts and does not use the network.

    Args:
        requested: `auto`, `online`, `offline` or `disabled`; `auto` follows `WANDB_MODE` if that is set.

    Returns:
        (`online`, `offline` or `disabled`; the reason).

    Raises:
        wandb.errors.AuthenticationError: a key is set, but it is malformed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    reason = f"logger.mode={requested}"
    if requested == "auto" and (preset := os.environ.get("WANDB_MODE")):
        requested, reason = preset, "WANDB_MODE"
    if requested in ("offline", "disabled"):
        return requested, reason
    return ("online", "a key was found") if _has_key() else ("offline", "no key: `wandb login` stores one")


@cache  # wandb.login raises while a run is open
def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


class WandB:
    """A W&B run with the same id after a resume, one step per epoch, and the final numbers in its summary."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        # wandb's service process writes its log to the home directory, or to the screen if it cannot
        os.environ.setdefault("WANDB_CACHE_DIR", str(run.directory.absolute()))
        mode, reason = wandb_mode(options["mode"])
        level = logging.INFO
        try:
            self._run = self._open(mode, options, run)
        except Exception as error:
            if mode != "online":
                raise
            mode, reason, level = "offline", one_line(error), logging.WARNING
            self._stop_service()
            self._run = self._open(mode, options, run)
        self._record = Record(run.directory)
        self._caught_up = False
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        if mode == "online":
            log.info("W&B online: %s", self._run.url)
        elif mode == "offline":
            log.log(level, "W&B offline (%s); to upload: wandb sync %s", reason, self._run.settings.sync_dir)

    def _open(self, mode: str, options: Mapping[str, Any], run: RunInfo) -> "Run":
        import wandb

        # settings whose names start with x_ are private to wandb and may disappear
        settings = {name: value for name, value in _SETTINGS.items() if name in wandb.Settings.model_fields}
        return wandb.init(
            id=run.id,
            name=run.name,
            project=options["project"],
            entity=options["entity"],
            group=options["group"] or run.group,
            job_type=run.job_type,
            # W&B refuses tags of more than 64 characters
            tags=[tag[:64] for tag in dict.fromkeys([*run.tags, *options["tags"]])],
            config=_without_periods(run.config),
            dir=run.directory,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**settings),
        )

    @staticmethod
    def _stop_service() -> None:
        """Stop wandb's service process: after a failed start it still treats the run's id as in use."""
        import wandb

        # wandb exits this process with the exit code of the service
        with suppress(SystemExit):
            wandb.teardown()

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Log the metrics of an epoch."""
        self._catch_up(before=epoch)
        # the epoch is the step, so the epochs that a resumed run repeats are not logged twice
        self._run.log({**metrics, "epoch": epoch}, step=epoch, commit=True)

    def _catch_up(self, before: float = math.inf) -> None:
        """Log the epochs of earlier attempts, once: W&B's own file of an attempt that was killed is empty."""
        if not self._caught_up:
            self._caught_up = True
            for row in self._record.epochs:
                if row["epoch"] < before:
                    metrics = {key: value for key, value in row.items() if key != "stage"}
                    self._run.log(metrics, step=row["epoch"], commit=True)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Write the summary and close the run."""
        try:
            self._catch_up()
            # W&B can neither tabulate nor plot a list, such as the accuracies of the classes; result.json has them
            self._run.summary.update({key: value for key, value in flat(summary) if not isinstance(value, list)})
        finally:
            self._close(exit_code)

    def _close(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError as error:
            directory = self._run.settings.sync_dir
            raise TimeoutError(f"not everything was uploaded; to upload the rest: wandb sync {directory}") from error


def _without_periods(node: Any) -> Any:
    """The same configuration without periods in its keys, which W&B would read as nesting."""
    if isinstance(node, Mapping):
        return {str(key).replace(".", "_"): _without_periods(value) for key, value in node.items()}
    return node

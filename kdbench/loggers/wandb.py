"""The W&B mirror: online where a key is configured, else offline into the run's directory."""

import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from kdbench.files import read_lines
from kdbench.loggers.mirror import RunInfo, flat, one_line

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger("kdbench")

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


class WandB:
    """A W&B run of our own: same id after a resume, one step an epoch, final numbers in the summary."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        # its helper process logs under the home directory, or on the screen where it cannot
        os.environ.setdefault("WANDB_CACHE_DIR", str(run.directory.absolute()))
        mode, reason = wandb_mode(options["mode"])
        level = logging.INFO
        try:
            self._run = self._open(mode, options, run)
        except Exception as error:
            if mode != "online":
                raise
            mode, reason, level = "offline", one_line(error), logging.WARNING
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

    def _open(self, mode: str, options: Mapping[str, Any], run: RunInfo) -> "Run":
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
        """Take the numbers of a finished epoch."""
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
        """Take the final numbers and close."""
        try:
            self._catch_up()
            # a list, of classes say, is no column of a table and no point of a plot: result.json has it
            self._run.summary.update({key: value for key, value in flat(summary) if not isinstance(value, list)})
        finally:
            self._close(exit_code)

    def _close(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError as error:
            where = self._run.settings.sync_dir
            raise TimeoutError(f"not all was uploaded; to upload the rest: wandb sync {where}") from error


def _without_periods(node: Any) -> Any:
    """The same configuration with no period in a key: W&B takes one for nesting."""
    if isinstance(node, Mapping):
        return {str(key).replace(".", "_"): _without_periods(value) for key, value in node.items()}
    return node

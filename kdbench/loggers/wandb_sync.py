"""Handing the W&B runs that were recorded offline to `wandb sync`, each once."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from kdbench.console import console
from kdbench.errors import UserError
from kdbench.records.record import all_records


def unsent(directory: Path) -> Path | None:
    """The newest `.wandb` file below a run's directory, if it was written offline and not uploaded since.

    A run that was continued has one for each attempt; the newest repeats what the others hold.
    """
    files = directory.glob("wandb/*run-*/run-*.wandb")  # offline-run-<time of its start>-<id>, or run- where online
    newest = max(files, key=lambda file: file.parent.name.removeprefix("offline-"), default=None)
    return newest if newest and newest.parent.name.startswith("offline-") and not sent(newest) else None


def sent(file: Path) -> bool:
    """Whether `wandb sync` has uploaded the file: it leaves a mark, also where it says nothing and ends with 0."""
    return file.with_suffix(".wandb.synced").exists()


def sync(outputs: Path, project: str | None, entity: str | None, dry_run: bool) -> int:
    """Upload what was not, in the order in which it was recorded.

    Args:
        outputs: root of the records.
        project: W&B project instead of the one in the files.
        entity: W&B user or team instead of the one in the files.
        dry_run: list, and send nothing; needs no key.

    Returns:
        0, or 1 if something was not sent.

    Raises:
        UserError: there is something to send and no key.
    """
    found = [(record, file) for record in all_records(outputs) if (file := unsent(record.directory))]
    waiting = [(record, file) for record, file in found if not record.locked]
    waiting.sort(key=lambda pair: pair[1].parent.name)
    aside = sum(unsent(place) is not None for place in outputs.glob("runs/*/previous/*"))

    console.print(f"offline W&B runs to send: {len(waiting)}, below {outputs}")
    if len(waiting) < len(found):
        console.print(f"under way, left alone until they end: {len(found) - len(waiting)}")
    if aside:
        console.print(f"set aside by force=true, left alone: {aside}")
    if dry_run:
        for record, _ in waiting:
            console.print(record.directory.name)
    if dry_run or not waiting:
        return 0

    log_in()
    options = [*(("--project", project) if project else ()), *(("--entity", entity) if entity else ())]
    _send([file for _, file in waiting], options)
    for _, file in waiting:
        # once more and by itself: one file that cannot be read keeps wandb from sending the others
        if len(waiting) > 1 and not sent(file):
            _send([file], options)
    failed = [record for record, file in waiting if not sent(file)]
    for record in failed:
        # of a killed attempt W&B has written little or nothing; the next one repeats it
        hint = "" if record.state == "finished" else f" ({record.state}; once continued and finished it can be)"
        console.print(f"not sent, see wandb's errors above: {record.directory}{hint}")
    console.print(f"{len(waiting) - len(failed)} of {len(waiting)} sent")
    return 1 if failed else 0


def _send(files: list[Path], options: list[str]) -> None:
    """Let wandb upload, several runs at a time. Its exit code is 0 whatever happens."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SILENT"}
    command = [sys.executable, "-m", "wandb", "sync", *options, *(str(file.parent) for file in files)]
    with TemporaryDirectory() as logs:  # not into the working directory
        subprocess.run(command, env=environment | {"WANDB_DIR": logs})


def log_in() -> None:
    """Make sure that W&B answers and knows the key, whatever `WANDB_MODE` says of runs. `wandb sync` alone would wait.

    Raises:
        UserError: there is no key, it is refused, or nobody answers within 20 seconds.
    """
    import wandb

    from kdbench.loggers.wandb import wandb_mode

    os.environ.pop("WANDB_MODE", None)  # `offline` would mean here: no key
    try:
        mode, why = wandb_mode("online")
        if mode == "online":
            wandb.Api(timeout=20)
    except wandb.Error as error:
        raise UserError(f"W&B cannot be reached, or refuses the key: {' '.join(str(error).split())}") from error
    if mode != "online":
        raise UserError(f"W&B has {why}, or set WANDB_API_KEY")

"""`kdbench sync`: hand the W&B runs that were recorded offline to `wandb sync`, each once."""

import os
import subprocess
import sys
from pathlib import Path

from kdbench.console import console
from kdbench.errors import UserError
from kdbench.records import records


def unsent(directory: Path) -> list[Path]:
    """The `.wandb` files below a run's directory that were written offline and not uploaded since, oldest first.

    An attempt leaves one; an interrupted and continued run has several, of one id.
    """
    files = directory.glob("wandb/offline-run-*/run-*.wandb")  # offline-run-<time of its start>-<id>
    return sorted(file for file in files if not sent(file))


def sent(file: Path) -> bool:
    """Whether `wandb sync` has uploaded the file: it leaves a mark, also where it says nothing and ends with 0."""
    return file.with_suffix(".wandb.synced").exists()


def main(outputs: Path, project: str | None, entity: str | None, dry_run: bool) -> int:
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
    waiting, running = [], 0
    for record in records(outputs):
        if files := unsent(record.directory):
            running += record.locked
            waiting += [] if record.locked else [(record, files)]
    waiting.sort(key=lambda pair: pair[1][0].parent.name)
    aside = sum(len(unsent(place)) for place in outputs.glob("runs/*/previous/*"))

    console.print(f"offline W&B runs to send: {len(waiting)}, below {outputs}")
    if running:
        console.print(f"under way, left alone until they end: {running}")
    if aside:
        console.print(f"set aside by force=true, left alone: {aside}")
    if dry_run:
        for record, files in waiting:
            console.print(f"{record.directory.name}: {', '.join(str(file.parent.name) for file in files)}")
    if dry_run or not waiting:
        return 0

    _send([file.parent for _, files in waiting for file in files], project, entity)
    failed = [record for record, files in waiting if not all(map(sent, files))]
    for record in failed:
        console.print(f"not sent, see wandb's errors above: {record.directory}")
    console.print(f"{len(waiting) - len(failed)} of {len(waiting)} sent")
    return 1 if failed else 0


def _send(directories: list[Path], project: str | None, entity: str | None) -> None:
    """Let wandb upload, several runs at a time, those of one id in the order of their start."""
    need_key()
    os.environ.pop("WANDB_SILENT", None)  # its words on what fails are wanted
    options = [*(("--project", project) if project else ()), *(("--entity", entity) if entity else ())]
    subprocess.run([sys.executable, "-m", "wandb", "sync", *options, *map(str, directories)])


def need_key() -> None:
    """Make sure that W&B can be spoken to, whatever `WANDB_MODE` says of runs.

    Raises:
        UserError: there is no key, or one that cannot be one.
    """
    from kdbench.loggers import wandb_mode

    os.environ.pop("WANDB_MODE", None)  # `offline` would mean here: no key
    try:
        mode, why = wandb_mode("online")
    except Exception as error:  # of a class that is private to wandb
        raise UserError(f"W&B refuses the key: {error}") from error
    if mode != "online":
        raise UserError(f"W&B has {why}, or set WANDB_API_KEY")

"""Sending the W&B runs that were recorded offline, each of them once, with `wandb sync`."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from kdbench.console import console
from kdbench.errors import UserError
from kdbench.loggers.wandb import wandb_mode
from kdbench.records.record import all_records


def unsent(directory: Path) -> Path | None:
    """The newest `.wandb` file below a run's directory, if it was written offline and has not been uploaded.

    A run that was resumed has one file per attempt; the newest one repeats what the others hold.
    """
    # the folder is offline-run-<start time>-<id>, or run-<start time>-<id> if the attempt was online
    files = directory.glob("wandb/*run-*/run-*.wandb")
    newest = max(files, key=lambda file: file.parent.name.removeprefix("offline-"), default=None)
    return newest if newest and newest.parent.name.startswith("offline-") and not sent(newest) else None


def sent(file: Path) -> bool:
    """Whether `wandb sync` has uploaded the file. Only the marker that it leaves tells; its exit code is always 0."""
    return file.with_suffix(".wandb.synced").exists()


def sync(outputs: Path, project: str | None, entity: str | None, dry_run: bool) -> int:
    """Upload every offline run that has not been uploaded, in the order in which the runs were started.

    Args:
        outputs: root of the records.
        project: W&B project instead of the one in the files.
        entity: W&B user or team instead of the one in the files.
        dry_run: whether to list the runs without sending them; needs no key.

    Returns:
        0, or 1 if a run could not be sent.

    Raises:
        UserError: there are runs to send, but W&B has no valid key or cannot be reached.
    """
    candidates = [(record, file) for record in all_records(outputs) if (file := unsent(record.directory))]
    waiting = [(record, file) for record, file in candidates if not record.locked]
    waiting.sort(key=lambda pair: pair[1].parent.name)
    replaced = sum(unsent(previous) is not None for previous in outputs.glob("runs/*/previous/*"))

    console.print(f"offline W&B runs to send: {len(waiting)}, below {outputs}")
    if len(waiting) < len(candidates):
        console.print(f"still running, not sent until they end: {len(candidates) - len(waiting)}")
    if replaced:
        console.print(f"replaced by force=true, not sent: {replaced}")
    if dry_run:
        for record, _ in waiting:
            console.print(record.directory.name)
    if dry_run or not waiting:
        return 0

    log_in()
    options = [*(("--project", project) if project else ()), *(("--entity", entity) if entity else ())]
    _send([file for _, file in waiting], options)
    for _, file in waiting:
        # retry alone: one unreadable file keeps wandb from sending the others
        if len(waiting) > 1 and not sent(file):
            _send([file], options)
    failed = [record for record, file in waiting if not sent(file)]
    for record in failed:
        # W&B's file of a killed attempt holds little or nothing; the next attempt repeats its epochs
        hint = "" if record.state == "finished" else f" ({record.state}: resume it, and send it when it has finished)"
        console.print(f"not sent, see wandb's errors above: {record.directory}{hint}")
    console.print(f"{len(waiting) - len(failed)} of {len(waiting)} sent")
    return 1 if failed else 0


def _send(files: list[Path], options: list[str]) -> None:
    """Let wandb upload several runs at a time. Its exit code is always 0."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SILENT"}
    command = [sys.executable, "-m", "wandb", "sync", *options, *(str(file.parent) for file in files)]
    with TemporaryDirectory() as logs:  # wandb would otherwise write them to the working directory
        subprocess.run(command, env=environment | {"WANDB_DIR": logs})


def log_in() -> None:
    """Make sure that W&B answers and accepts the key, whatever mode `WANDB_MODE` sets for runs.

    Without this check `wandb sync` would wait for a server that does not answer.

    Raises:
        UserError: there is no key, W&B rejects it, or W&B does not answer within 20 seconds.
    """
    import wandb

    os.environ.pop("WANDB_MODE", None)  # with `offline`, wandb would ignore the key
    try:
        mode, reason = wandb_mode("online")
        if mode == "online":
            wandb.Api(timeout=20)
    except wandb.Error as error:
        raise UserError(f"W&B cannot be reached or rejects the key: {' '.join(str(error).split())}") from error
    if mode != "online":
        raise UserError(f"W&B has {reason}, or set WANDB_API_KEY")

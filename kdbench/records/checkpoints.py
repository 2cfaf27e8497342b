"""Checkpoints whose names carry the hash of their content, so that a damaged one is never used; two are kept."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from kdbench.files import digest, replace_with

log = logging.getLogger("kdbench")
_KEPT = 2


class InPlace(TorchCheckpointIO):
    """Writes straight to the path it is given; Lightning's own writes to the system's temporary folder first."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; raises OSError as the file system does."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())


def save(trainer: pl.Trainer, directory: Path) -> None:
    """Write the state at the end of the current epoch; then remove all but the two newest.

    Raises:
        OSError: the disk is full, say; earlier checkpoints are untouched.
    """
    temporary = directory / f".saving.{os.getpid()}"
    try:
        trainer.save_checkpoint(temporary)
        name = f"{trainer.current_epoch:06d}-{digest(temporary)[:16]}.ckpt"
        replace_with(directory / name, temporary.rename)
    finally:
        temporary.unlink(missing_ok=True)
    for old in sorted(directory.glob("*.ckpt"))[:-_KEPT]:
        old.unlink()


def newest(directory: Path) -> Path | None:
    """The newest intact checkpoint; one whose content does not match the hash in its name is set aside, with a warning.

    The caller holds the run's lock, so temporary files are leftovers of a killed process, and are removed.
    """
    for leftover in directory.glob(".*"):
        leftover.unlink()
    for path in sorted(directory.glob("*.ckpt"), reverse=True):
        if digest(path)[:16] == path.stem.partition("-")[2]:
            return path
        path.rename(path.with_suffix(".damaged"))
        log.warning("%s is damaged: set aside, the one before it is used", path)
    return None


def next_epoch(path: Path | None) -> int:
    """First epoch that a run continued from `path` trains (0-based)."""
    return 0 if path is None else int(path.name.partition("-")[0]) + 1

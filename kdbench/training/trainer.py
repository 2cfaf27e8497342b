"""Lightning's Trainer, set up so that it trains and does nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdbench.console import silence_lightning
from kdbench.records import checkpoints


def make_trainer(
    options: Mapping[str, Any], epochs: int, directory: Path | str, callbacks: list[pl.Callback], accumulate: int = 1
) -> pl.Trainer:
    """A Trainer that only trains: without a logger, bar, checkpoint or validation of its own.

    Args:
        options: the `trainer` group.
        epochs: passes over the training set.
        directory: where Lightning may write.
        callbacks: in the order in which they are called.
        accumulate: batches per step of the optimiser.
    """
    silence_lightning()
    return pl.Trainer(
        accelerator=options["device"],
        devices=1,
        precision=options["precision"],
        max_epochs=epochs,
        limit_train_batches=options["max_batches"],
        limit_val_batches=0,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=directory,
        plugins=[checkpoints.InPlace()],
        callbacks=callbacks,
    )

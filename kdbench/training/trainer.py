"""Lightning's Trainer, set up so that it trains and does nothing else."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from kdbench.console import silence_lightning
from kdbench.errors import UserError
from kdbench.records import checkpoints

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler,
}  # fmt: skip
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # Lightning sets it where algorithms must be deterministic


def make_trainer(
    options: Mapping[str, Any],
    epochs: int,
    directory: Path | str,
    callbacks: list[pl.Callback],
    accumulate: int = 1,
    profiler: Profiler | None = None,
) -> pl.Trainer:
    """A Trainer that only trains: without a logger, bar, checkpoint or validation of its own.

    It switches deterministic algorithms on or off for the whole process; `unchanged_flags` takes that back.

    Args:
        options: the `trainer` group.
        epochs: passes over the training set.
        directory: where Lightning may write.
        callbacks: in the order in which they are called.
        accumulate: batches per step of the optimiser.
        profiler: measures the training.
    """
    silence_lightning()
    return pl.Trainer(
        accelerator=options["device"],
        devices=1,
        precision=options["precision"],
        deterministic=options.get("deterministic", False),  # records of earlier versions lack the key
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
        profiler=profiler,
    )


def make_profiler(kind: str | None, directory: Path) -> Profiler | None:
    """The profiler of `trainer.profiler`, which writes `fit-profile.txt` at the end of a training.

    Args:
        kind: `simple`, `advanced`, `pytorch`, or None for none.
        directory: where it writes.
    """
    return None if kind is None else _PROFILERS[kind](dirpath=directory, filename="profile")


@contextmanager
def unchanged_flags() -> Iterator[None]:
    """Give torch back the flags that it had, whatever a Trainer has set for the whole process meanwhile.

    Raises:
        UserError: an operation has no deterministic algorithm, and `trainer.deterministic=true` asks for one.
    """
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise UserError(f"trainer.deterministic=true is not possible: {str(error).partition(',')[0]}") from error
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace

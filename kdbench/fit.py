"""Training one attached method: Lightning's Trainer, its callbacks, and what an epoch leaves in the record."""

import json
import logging
import resource
import time
from typing import Any

import pytorch_lightning as pl
import torch

from kdbench import checkpoints, interrupts
from kdbench.console import hush
from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.evaluation.assessment import Memory, assess
from kdbench.evaluation.passes import score, score_student
from kdbench.files import read_lines, write_text
from kdbench.loggers import Logger
from kdbench.methods.base import Method
from kdbench.run import Run
from kdbench.screen import Screen

log = logging.getLogger("kdbench")


def trainer(options: dict[str, Any], epochs: int, directory: Any, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Trainer that only trains: no logger, bar, checkpoint or validation of its own.

    Args:
        options: the `trainer` group.
        epochs: passes over the training set.
        directory: where Lightning may write.
        callbacks: in the order in which they are called.
    """
    hush()
    return pl.Trainer(
        accelerator=options["device"],
        devices=1,
        precision=options["precision"],
        max_epochs=epochs,
        limit_train_batches=options["max_batches"],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=directory,
        plugins=[checkpoints.InPlace()],
        callbacks=callbacks,
    )


def members(scores: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """What is recorded where a method trains more than one classifier: each, and mean and best of the single ones."""
    single = [each["accuracy"] for name, each in scores.items() if name != "ensemble"]
    if len(single) < 2:
        return None
    best = {"accuracy": max(single), "selected_on_test": True}
    return {"each": scores, "mean": {"accuracy": sum(single) / len(single)}, "best": best}


class Stages(pl.Callback):
    """Tells the method which epoch begins; a new stage begins with an optimiser and a schedule of its own."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also here: Lightning skips `on_train_epoch_start` in the first epoch after a resume at an epoch's end."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the epoch."""
        assert isinstance(pl_module, Method)
        if pl_module.enter(trainer.current_epoch):
            trainer.strategy.setup_optimizers(trainer)


class Streams(pl.Callback):
    """Every epoch starts its random streams anew from (seed, epoch), so a continued run repeats an unbroken one."""

    def __init__(self, seed: int, data: DataModule) -> None:
        self.seed, self.data = seed, data

    def _start(self, epoch: int) -> None:
        torch.manual_seed(derive(self.seed, "training", epoch))
        self.data.set_epoch(epoch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also here: Lightning skips `on_train_epoch_start` in the first epoch after a resume at an epoch's end."""
        self._start(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's streams."""
        self._start(trainer.current_epoch)


class History(pl.Callback):
    """One row an epoch: to `metrics.jsonl`, then to the mirror, the status and the screen."""

    def __init__(self, run: Run, data: DataModule, mirror: Logger, screen: Screen, test_every: int) -> None:
        self.run, self.data, self.mirror, self.screen, self.test_every = run, data, mirror, screen, test_every
        self.seconds = 0.0
        self.images = 0
        self.warned = False
        self.best_on_test: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a continued run adds to."""
        return {"seconds": self.seconds, "images": self.images, "best_on_test": self.best_on_test}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self.best_on_test = state_dict["best_on_test"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the rows that the checkpoint does not know of."""
        assert isinstance(pl_module, Method)
        rows = [row for row in read_lines(self.run.metrics) if row["epoch"] < trainer.current_epoch]
        write_text(self.run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        self.validation = self.data.val_dataloader()
        self.memory = Memory(trainer, pl_module.teacher, self.data)
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the epoch's means, look at the validation set, write the row."""
        assert isinstance(pl_module, Method)
        epoch = trainer.current_epoch
        losses = pl_module.meter.means(epoch)
        seconds = time.perf_counter() - self.started
        self.seconds += seconds
        self.images += pl_module.meter.steps * self.data.batch_size
        row: dict[str, Any] = {"epoch": epoch, "stage": pl_module.stage.name, "train/loss": sum(losses.values())}
        row |= {f"train/{name}": value for name, value in losses.items()}
        watched = pl_module.watch.means(epoch)
        row |= {f"watch/{name}": value for name, value in watched.items()}
        if not self.warned and (warning := pl_module.review(watched)):
            log.warning("%s, epoch %d: %s", self.run.name, epoch + 1, warning)
            self.warned = True
        if self.data.val_size:
            row |= {f"val/{key}": value for key, value in score_student(trainer, pl_module, self.validation).items()}
        row |= {f"noisy/{name}": share for name, share in self.memory.shares(pl_module.student).items()}
        if self.test_every and (epoch + 1) % self.test_every == 0:
            test = score_student(trainer, pl_module, self.data.test_dataloader())
            row |= {f"test/{key}": value for key, value in test.items()}
            if self.best_on_test is None or test["accuracy"] > self.best_on_test["accuracy"]:
                self.best_on_test = {"accuracy": test["accuracy"], "epoch": epoch}
        row |= {"lr": self.lr, "seconds": seconds}
        with self.run.metrics.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        self.mirror.log({key: value for key, value in row.items() if key not in ("epoch", "stage")}, epoch)
        self.run.status(epoch=epoch + 1, epochs=trainer.max_epochs)
        self.screen.epoch(row)


class Saver(pl.Callback):
    """A checkpoint at the end of an epoch, if the last one is old enough. Comes after `History`."""

    def __init__(self, run: Run, seconds: float) -> None:
        self.run, self.seconds = run, seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.saved = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless it is too soon; then stop if a signal was lost."""
        if time.monotonic() - self.saved >= self.seconds:
            checkpoints.save(trainer, self.run.checkpoints)
            self.saved = time.monotonic()
        interrupts.raise_lost()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the CUDA allocator since the run began, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit(
    method: Method, data: DataModule, run: Run, cfg: dict[str, Any], mirror: Logger, screen: Screen
) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint if there is one, and look at the test set once.

    Returns:
        The measured part of the result: `test`, `fidelity`, `members`, `val`, `best_on_test`, `cost`.
    """
    options, epochs = cfg["trainer"], method.epochs
    history = History(run, data, mirror, screen, options["test_every"])
    saver = Saver(run, options["checkpoint_seconds"])
    engine = trainer(options, epochs, run.directory, [Stages(), Streams(cfg["seed"], data), history, saver, screen])
    start = checkpoints.newest(run.checkpoints)
    if start:
        log.info("continuing at epoch %d of %d", checkpoints.next_epoch(start) + 1, epochs)
        method.enter(checkpoints.next_epoch(start) - 1)  # the state of its optimiser is in the checkpoint
    data.set_epoch(checkpoints.next_epoch(start))
    device = engine.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with screen.showing(epochs):
        try:
            engine.fit(method, datamodule=data, ckpt_path=start, weights_only=True)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
                raise end.__context__ from None
            raise
    method.to(device)
    scores = score(engine, method, data.test_dataloader(), method.predictions)
    found = assess(engine, method.student, method.teacher, data)
    rows = list(read_lines(run.metrics))
    last = rows[-1] if rows else {}  # none where recipe.stop_after is 0
    validated = {key[4:]: value for key, value in last.items() if key.startswith("val/")}
    best = history.best_on_test or {"accuracy": None, "epoch": None}
    return {
        "test": {**found["test"], **scores["student"]},
        "fidelity": found["fidelity"],
        "members": members(scores),
        "val": validated or dict.fromkeys(scores["student"]),
        "best_on_test": {**best, "selection_rule": False},
        "cost": {
            "train_seconds": history.seconds,
            "images_per_second": history.images / history.seconds if history.seconds else None,
            "peak_memory_bytes": peak_memory(device),
        },
    }

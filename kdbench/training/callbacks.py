"""What happens around the epochs of a training: stages, random streams, the record of each epoch, checkpoints."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.evaluation.assessment import Memorisation
from kdbench.evaluation.passes import score_student
from kdbench.loggers import Guarded
from kdbench.methods.machinery.module import DistillationModule
from kdbench.records import checkpoints
from kdbench.records.writer import RecordWriter
from kdbench.training import signals
from kdbench.training.averaging import Averaging
from kdbench.training.progress import ProgressDisplay

log = logging.getLogger("kdbench")


class EpochStart(pl.Callback):
    """Does something at the start of every epoch of a method.

    Lightning skips `on_train_epoch_start` in the first epoch after a resume at an epoch's end, so the work is done in
    `on_train_start`, too.
    """

    def start(self, trainer: pl.Trainer, method: DistillationModule) -> None:
        """Start an epoch."""
        raise NotImplementedError

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the first epoch."""
        assert isinstance(pl_module, DistillationModule)
        self.start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start an epoch."""
        self.on_train_start(trainer, pl_module)


class Stages(EpochStart):
    """Tells the method which epoch begins; a new stage begins with an optimiser and a schedule of its own."""

    def start(self, trainer: pl.Trainer, method: DistillationModule) -> None:
        """Enter the epoch."""
        if method.enter_epoch(trainer.current_epoch):
            trainer.strategy.setup_optimizers(trainer)


class Streams(EpochStart):
    """Starts the random streams of every epoch anew from (seed, epoch), so a continued run repeats an unbroken one."""

    def __init__(self, seed: int, data: DataModule) -> None:
        self.seed, self.data = seed, data

    def start(self, trainer: pl.Trainer, method: DistillationModule) -> None:
        """Start the epoch's streams."""
        torch.manual_seed(derive(self.seed, "training", trainer.current_epoch))
        self.data.set_epoch(trainer.current_epoch)


class History(pl.Callback):
    """One row an epoch: to `metrics.jsonl`, then to the mirror, the status and the screen. Comes after `Averaging`."""

    def __init__(
        self,
        writer: RecordWriter,
        data: DataModule,
        mirror: Guarded,
        display: ProgressDisplay,
        test_every: int,
        averaging: Averaging | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.writer, self.data, self.mirror, self.display, self.test_every = writer, data, mirror, display, test_every
        self.averaging, self.clock = averaging, clock
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
        """Drop the rows of epochs that come after the checkpoint."""
        assert isinstance(pl_module, DistillationModule)
        epochs = self.writer.record.epochs
        self.writer.restart_metrics(row for row in epochs if row["epoch"] < trainer.current_epoch)
        self.validation = self.data.val_dataloader()
        self.memorisation = Memorisation(trainer, pl_module.teacher, self.data)
        self._start_clock(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start_clock(trainer)

    def _start_clock(self, trainer: pl.Trainer) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.started = self.clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the epoch's means, score the validation set, write the row."""
        assert isinstance(pl_module, DistillationModule)
        epoch = trainer.current_epoch
        losses = pl_module.loss_meter.means(epoch)
        seconds = self.clock() - self.started
        self.seconds += seconds
        self.images += pl_module.loss_meter.steps * self.data.batch_size
        row: dict[str, Any] = {"epoch": epoch, "stage": pl_module.stage.name, "train/loss": sum(losses.values())}
        row |= {f"train/{name}": value for name, value in losses.items()}
        watched = pl_module.watched_meter.means(epoch)
        row |= {f"watch/{name}": value for name, value in watched.items()}
        if not self.warned and (warning := pl_module.warning(watched)):
            log.warning("%s, epoch %d: %s", self.writer.record.name, epoch + 1, warning)
            self.warned = True
        row |= self._scores_of_weights(trainer, pl_module, epoch)
        row |= {"lr": self.lr, "seconds": seconds}
        self.writer.add_metrics(row)
        self.mirror.log({key: value for key, value in row.items() if key not in ("epoch", "stage")}, epoch)
        self.writer.status(epoch=epoch + 1, epochs=trainer.max_epochs)
        self.display.epoch(row)

    def _scores_of_weights(self, trainer: pl.Trainer, method: DistillationModule, epoch: int) -> dict[str, float]:
        """`_scores` of the weights that would be exported; an average that would not is scored as `ema`, too."""
        if self.averaging is None:
            return self._scores(trainer, method, epoch)
        if self.averaging.exported:
            with self.averaging.applied(method.student):
                return self._scores(trainer, method, epoch)
        scores = self._scores(trainer, method, epoch)
        if self.data.val_size:
            with self.averaging.applied(method.student):
                averaged = score_student(trainer, method, self.validation)
            scores |= {f"ema/{key}": value for key, value in averaged.items()}
        return scores

    def _scores(self, trainer: pl.Trainer, method: DistillationModule, epoch: int) -> dict[str, float]:
        """Of the validation set, of wrongly labelled images, and of the test set in the epochs that are to see it."""
        scores: dict[str, float] = {}
        if self.data.val_size:
            scores |= {f"val/{key}": value for key, value in score_student(trainer, method, self.validation).items()}
        scores |= {f"noisy/{name}": share for name, share in self.memorisation.shares(method.student).items()}
        if self.test_every and (epoch + 1) % self.test_every == 0:
            test = score_student(trainer, method, self.data.test_dataloader())
            scores |= {f"test/{key}": value for key, value in test.items()}
            if self.best_on_test is None or test["accuracy"] > self.best_on_test["accuracy"]:
                self.best_on_test = {"accuracy": test["accuracy"], "epoch": epoch}
        return scores


class Saver(pl.Callback):
    """A checkpoint at the end of an epoch, if the last one is old enough. Comes after `History`."""

    def __init__(self, writer: RecordWriter, seconds: float) -> None:
        self.writer, self.seconds = writer, seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.saved = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless it is too soon; then stop if a signal was lost."""
        if time.monotonic() - self.saved >= self.seconds:
            checkpoints.save(trainer, self.writer.record.checkpoints)
            self.saved = time.monotonic()
        signals.raise_lost()

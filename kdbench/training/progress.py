"""The progress of a training: one bar on a terminal, one line per epoch elsewhere."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.console import console

log = logging.getLogger("kdbench")


class ProgressDisplay(pl.Callback):
    """Shows the progress of a training.

    Args:
        title: names the run.
        mode: `auto` (a bar on a terminal, else lines), `bar`, `lines` or `none`.
        alone: whether no other training in this process shows its progress; only one bar can be shown.
    """

    def __init__(self, title: str, mode: str, alone: bool = True) -> None:
        self.title = title
        self.mode = ("bar" if console.is_terminal else "lines") if mode == "auto" else mode
        if self.mode == "bar" and not alone:
            self.mode = "lines"
        self.epochs = 0
        self._progress: Progress | None = None

    @contextmanager
    def showing(self, epochs: int) -> Iterator[None]:
        """Show the bar while `epochs` epochs are trained."""
        self.epochs = epochs
        if self.mode != "bar":
            yield
            return
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[news]}"),
            console=console, transient=True, refresh_per_second=4, expand=True,
        )  # fmt: skip
        with self._progress:
            self._task = self._progress.add_task(self.title, total=None, news="")
            yield
        self._progress = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the length of the bar."""
        if self._progress:
            steps = int(trainer.num_training_batches)
            done = steps * trainer.current_epoch
            self._progress.update(self._task, total=steps * self.epochs, completed=done)

    def on_train_batch_end(self, *_: Any) -> None:
        """Advance the bar; reads nothing from the device."""
        if self._progress:
            self._progress.advance(self._task)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show a finished epoch: its number, named losses, validation accuracy."""
        losses = " ".join(f"{key[6:]} {value:.4g}" for key, value in row.items() if key.startswith("train/"))
        stage = "" if row["stage"] == "training" else f" ({row['stage']})"
        news = f"epoch {row['epoch'] + 1:.0f}/{self.epochs}{stage}  {losses}"
        if "val/accuracy" in row:
            news += f"  val {row['val/accuracy']:.2%}"
        if self._progress:
            self._progress.update(self._task, news=news)
        elif self.mode == "lines":
            log.info("%s  %s  %.1f s", self.title, news, row["seconds"])

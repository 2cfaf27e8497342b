"""How much of the hardware's speed a real training epoch keeps: timed against a bare loop, in one process, in turn."""

import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from kdbench import config, loggers
from kdbench.console import speak
from kdbench.data.batch import Batch
from kdbench.distill import assemble, data_of, untaught
from kdbench.experiment import preflight
from kdbench.files import write_json
from kdbench.fit import History, Saver, Stages, Streams, peak_memory, trainer
from kdbench.methods.base import Method
from kdbench.run import Run, environment, identify
from kdbench.screen import Screen
from kdbench.teachers import sizes_of


def bare_step(method: Method, optimizers: list[Optimizer], batch: Batch, engine: pl.Trainer) -> None:
    """Forward, backward and update, and nothing else."""
    with engine.precision_plugin.forward_context():
        loss = torch.stack(list(method.terms(batch).values())).sum()
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


class BareLoop(pl.Callback):
    """After each epoch, times as many steps of a bare loop: teacher forward, student forward and backward, step.

    It has a method with networks and an optimiser of its own, made like the other, so precision, memory format,
    compilation and losses are the same, and one resident batch of synthetic images; no loader, no augmentation, no
    Trainer, no records.
    """

    def __init__(self, method: Method, batch_size: int, channels: int, side: int) -> None:
        self.method = method
        self.shape = (batch_size, channels, side)
        self.seconds: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Place networks and batch."""
        device = trainer.strategy.root_device
        self.method.to(device)
        self.batch = resident_batch(*self.shape, self.method.student.shapes.num_classes, device)
        self.optimizers, _ = self.method.configure_optimizers()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time the loop."""
        device = trainer.strategy.root_device
        if self.method.enter(trainer.current_epoch):
            self.optimizers, _ = self.method.configure_optimizers()
        start = time.perf_counter()
        for _ in range(int(trainer.num_training_batches)):
            bare_step(self.method, self.optimizers, self.batch, trainer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds.append(time.perf_counter() - start)


class Clock(pl.Callback):
    """Times whole real epochs, from the first hook to the last: loader, steps, rows, checkpoints."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.start = time.perf_counter()

    def stop(self) -> None:
        """End of the epoch's work."""
        self.seconds.append(time.perf_counter() - self.start)


class _Stop(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.stop()


def measure(cfg: dict[str, Any], rounds: int, steps: int) -> dict[str, Any]:
    """Train `rounds` epochs of at most `steps` steps, each followed by the bare loop; one more round first warms up.

    The teacher is not trained: its speed does not depend on its weights.

    Returns:
        Median seconds, images per second and ratio (bare / epoch, at most about 1), peak memory, environment.

    Raises:
        UserError: the configuration cannot run.
    """
    speak()
    cfg = copy.deepcopy(cfg)
    cfg["recipe"]["epochs"] = rounds + 1
    cfg["trainer"] |= {"max_batches": steps, "progress": "none"}
    cfg["dataset"]["val_fraction"] = 0.0
    preflight(cfg)
    data = data_of(cfg).prepare()
    steps = min(steps, data.train_size // data.batch_size)
    method = untrained(cfg)
    bare = BareLoop(untrained(cfg), data.batch_size, data.in_chans, data.image_size)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(identify(cfg, fingerprint=None, teacher=None), Path(folder))
        run.checkpoints.mkdir(parents=True)
        clock, screen = Clock(), Screen("bench", "none")
        mirror = loggers.start(
            {"kind": "none"}, loggers.RunInfo(run.id, run.name, run.directory, "", "", [], {}, False)
        )
        history = History(run, data, mirror, screen, test_every=0)
        saver = Saver(run, cfg["trainer"]["checkpoint_seconds"])
        callbacks = [clock, Stages(), Streams(cfg["seed"], data), history, saver, screen, _Stop(clock), bare]
        engine = trainer(cfg["trainer"], method.epochs, run.directory, callbacks)
        engine.fit(method, datamodule=data)
    images = steps * data.batch_size
    epochs, loops = clock.seconds[1:], bare.seconds[1:]
    return {
        "epoch_images_per_second": images / statistics.median(epochs),
        "bare_images_per_second": images / statistics.median(loops),
        "ratio": statistics.median(loop / epoch for loop, epoch in zip(loops, epochs, strict=True)),
        "epoch_seconds": epochs,
        "bare_seconds": loops,
        "peak_memory_bytes": peak_memory(engine.strategy.root_device),
        "batch_size": data.batch_size,
        "steps": steps,
        "environment": environment(),
    }


def measure_pace(cfg: dict[str, Any], rounds: int = 2, steps: int = 5) -> float:
    """Seconds that an epoch of training will take, from epochs of a few real steps.

    Raises:
        UserError: the configuration cannot run.
    """
    data = data_of(cfg).prepare()
    limit = cfg["trainer"]["max_batches"]
    batches = min(data.train_size // data.batch_size, limit or data.train_size)
    figures = measure(cfg, rounds, min(steps, batches))
    return batches * statistics.median(figures["epoch_seconds"]) / figures["steps"]


def untrained(cfg: dict[str, Any]) -> Method:
    """The method with networks of random weights."""
    return assemble(cfg, untaught(cfg), sizes_of(cfg["dataset"]))


def resident_batch(count: int, channels: int, side: int, classes: int, device: torch.device) -> Batch:
    """A batch of noise, with all classes in turn."""
    images = torch.rand(count, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
    index = torch.arange(count, device=device)
    return Batch(images, index % classes, index)


def main(overrides: list[str], rounds: int, steps: int, json_path: str | None) -> int:
    """Measure, print a table, and write JSON if asked; returns the exit code.

    Raises:
        UserError: as `measure`.
    """
    cfg, _ = config.composed(overrides)
    figures = measure(cfg, rounds, steps)
    table = Table(title=f"{' '.join(overrides)}: median of {rounds} rounds in turn, {figures['steps']} steps of "
                  f"{figures['batch_size']} images, {figures['environment']['threads']} threads")  # fmt: skip
    for column in ("", "images/s", "ms/step"):
        table.add_column(column, justify="right" if column else "left")
    for name, key in (("bare loop", "bare"), ("real epoch", "epoch")):
        milliseconds = 1e3 * statistics.median(figures[f"{key}_seconds"]) / figures["steps"]
        table.add_row(name, f"{figures[f'{key}_images_per_second']:.1f}", f"{milliseconds:.1f}")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"ratio {figures['ratio']:.3f}, peak memory {figures['peak_memory_bytes'] / 2**20:.0f} MiB")
    console.print(json.dumps({key: figures[key] for key in ("ratio", "epoch_images_per_second")}))
    if json_path:
        write_json(Path(json_path), figures)
    return 0

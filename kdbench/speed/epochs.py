"""How much of the hardware's speed a real training epoch keeps: timed against a bare loop, in one process, in turn."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from kdbench import loggers
from kdbench.config.frozen import FrozenDict
from kdbench.console import show_messages
from kdbench.data.batch import Batch
from kdbench.methods.machinery.module import DistillationModule
from kdbench.records.environment import environment
from kdbench.records.writer import RecordWriter
from kdbench.specs.resolve import resolve
from kdbench.specs.spec import RunSpec
from kdbench.training.assemble import assemble, data_of, untrained_teacher
from kdbench.training.callbacks import History, Saver, Stages, Streams
from kdbench.training.conduct import check_device
from kdbench.training.fit import peak_memory
from kdbench.training.progress import ProgressDisplay
from kdbench.training.trainer import make_trainer


def bare_step(method: DistillationModule, optimizers: list[Optimizer], batch: Batch, engine: pl.Trainer) -> None:
    """Forward, backward and update, and nothing else."""
    with engine.precision_plugin.forward_context():
        loss = torch.stack(list(method.batch_losses(batch).values())).sum()
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

    def __init__(self, method: DistillationModule, batch_size: int, channels: int, side: int) -> None:
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
        if self.method.enter_epoch(trainer.current_epoch):
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


def measure(config: FrozenDict, rounds: int, steps: int) -> dict[str, Any]:
    """Train `rounds` epochs of at most `steps` steps, each followed by the bare loop; one more round first warms up.

    The teacher is not trained: its speed does not depend on its weights.

    Args:
        config: of a run, checked.
        rounds: timed pairs of epoch and loop.
        steps: in an epoch, at most.

    Returns:
        Median seconds, images per second and ratio (bare / epoch, at most about 1), peak memory, environment.

    Raises:
        UserError: the configuration cannot run.
    """
    show_messages()
    changed = {
        "recipe": {**config["recipe"], "epochs": rounds + 1},
        "trainer": {**config["trainer"], "max_batches": steps, "progress": "none"},
        "dataset": {**config["dataset"], "val_fraction": 0.0},
        "logger": {"kind": "none"},
    }
    spec = resolve(FrozenDict.of({**config, **changed}))
    check_device(spec.config["trainer"])
    data = data_of(spec)
    steps = min(steps, data.train_size // data.batch_size)
    method = untrained(spec)
    bare = BareLoop(untrained(spec), data.batch_size, data.in_chans, data.image_size)
    with tempfile.TemporaryDirectory() as folder:
        writer = RecordWriter(Path(folder) / spec.directory.name)
        writer.record.checkpoints.mkdir(parents=True)
        clock, display = Clock(), ProgressDisplay("bench", "none")
        about = loggers.RunInfo(spec.id, spec.name, writer.record.directory, "", "", [], {})
        history = History(writer, data, loggers.start(spec.config["logger"], about), display, test_every=0)
        saver = Saver(writer, spec.config["trainer"]["checkpoint_seconds"])
        streams = Streams(spec.config["seed"], data)
        callbacks = [clock, Stages(), streams, history, saver, display, _Stop(clock), bare]
        engine = make_trainer(spec.config["trainer"], method.total_epochs, writer.record.directory, callbacks)
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


def seconds_per_epoch(spec: RunSpec, rounds: int = 2, steps: int = 5) -> float:
    """Seconds that an epoch of training will take, from epochs of a few real steps.

    Args:
        spec: of the run.
        rounds: timed epochs.
        steps: in each, at most.

    Raises:
        UserError: the configuration cannot run.
    """
    data = data_of(spec)
    limit = spec.config["trainer"]["max_batches"]
    batches = min(data.train_size // data.batch_size, limit or data.train_size)
    figures = measure(spec.config, rounds, min(steps, batches))
    return batches * statistics.median(figures["epoch_seconds"]) / figures["steps"]


def untrained(spec: RunSpec) -> DistillationModule:
    """The method of a run, with networks of random weights."""
    return assemble(spec, untrained_teacher(spec))


def resident_batch(count: int, channels: int, side: int, classes: int, device: torch.device) -> Batch:
    """A batch of noise, with all classes in turn."""
    images = torch.rand(count, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
    index = torch.arange(count, device=device)
    return Batch(images, index % classes, index)

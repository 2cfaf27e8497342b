"""What methods cost: their steps timed in turn, in one process, and the memory that a step takes."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kdbench.console import show_messages
from kdbench.data.batch import Batch
from kdbench.methods.machinery.module import DistillationModule
from kdbench.methods.machinery.stages import Stage
from kdbench.specs.resolve import spec_of
from kdbench.speed.epochs import bare_step, resident_batch, untrained
from kdbench.training.conduct import check_device
from kdbench.training.trainer import make_trainer


class Contender:
    """One stage of one method, in its first epoch, ready to be stepped on a resident batch."""

    def __init__(self, name: str, method: DistillationModule, stage: Stage, batch: Batch, engine: pl.Trainer) -> None:
        self.name = name if stage.name == "training" else f"{name} ({stage.name})"
        self.extra = method.extra_parameters()
        self.method, self.batch, self.engine = method, batch, engine
        before = method.stages[: method.stages.index(stage)]
        self.epoch = sum(earlier.recipe["epochs"] for earlier in before)
        method.enter_epoch(self.epoch)
        self.optimizers, _ = method.configure_optimizers()
        self.seconds: list[float] = []

    def step(self) -> None:
        """Forward, backward and update."""
        self.method.enter_epoch(self.epoch)
        bare_step(self.method, self.optimizers, self.batch, self.engine)

    def run(self, steps: int) -> None:
        """Time so many steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        if self.batch.images.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append((time.perf_counter() - start) / steps)

    def peak_memory(self) -> int:
        """Bytes: networks, gradients and optimiser state, and the most that one step allocates on top."""
        each = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        states = [value for state in each for value in state.values()]
        kept = [*self.method.parameters(), *self.method.buffers(), *(s for s in states if isinstance(s, torch.Tensor))]
        if self.method.teacher is not None:
            kept += [*self.method.teacher.parameters(), *self.method.teacher.buffers()]
        for parameter in self.method.parameters():
            parameter.grad = None
        return sum(tensor.nbytes for tensor in kept) + most_allocated(self.step, self.batch.images.device)


def most_allocated(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors on `device` that were alive at one time during `work`, beyond those before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def compare(overrides: list[str], methods: list[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time the steps of several methods in turn, in one process, on the same resident batch; one more round warms up.

    The first method is the measure of all. Methods of two stages are timed in each.

    Args:
        overrides: as for a run.
        methods: names.
        rounds: of all methods.
        steps: of each method in a round.

    Returns:
        For every method and stage its name, extra parameters, median milliseconds a step, their ratio to the first's
        (median over rounds), peak memory in bytes and its ratio.

    Raises:
        UserError: a configuration cannot run.
    """
    show_messages()
    contenders = []
    for name in methods:
        spec = spec_of([*overrides, f"method={name}"])
        check_device(spec.config["trainer"])
        engine = make_trainer(spec.config["trainer"], 1, Path(tempfile.gettempdir()), [])
        device, sizes = engine.strategy.root_device, spec.sizes
        count = spec.config["recipe"]["batch_size"]
        batch = resident_batch(count, sizes.in_chans, sizes.image_size, sizes.num_classes, device)
        method = untrained(spec).to(device)
        contenders += [Contender(name, method, stage, batch, engine) for stage in method.stages]
    for _ in range(rounds + 1):
        for contender in contenders:
            contender.run(steps)
    first = contenders[0]
    base = first.peak_memory()
    return [
        {
            "name": each.name,
            "extra_parameters": each.extra,
            "milliseconds": 1e3 * statistics.median(each.seconds[1:]),
            "time_ratio": statistics.median(a / b for a, b in zip(each.seconds[1:], first.seconds[1:], strict=True)),
            "peak_memory_bytes": (memory := each.peak_memory()),
            "memory_ratio": memory / base,
        }
        for each in contenders
    ]

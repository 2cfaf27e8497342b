"""Floor, step and real epoch of `kd`, the loop of the field, and several processes on one device."""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from gpu_parts.correctness import places_of_waiting
from gpu_parts.parts import FORK, SETTINGS, Outcome, Plan, Task, Time
from kdbench.data import sources
from kdbench.data.batch import Batch
from kdbench.specs.resolve import spec_of
from kdbench.specs.spec import RunSpec
from kdbench.speed.epochs import bare_step, measure, resident_batch, untrained
from kdbench.speed.steps import Contender
from kdbench.training.assemble import data_of
from kdbench.training.trainer import make_trainer


class Floor(Contender):
    """The least that a step of `kd` computes: both networks forward, two losses, the student backward, the update."""

    def step(self) -> None:
        """Forward, backward and update."""
        images, labels, _ = self.batch[:3]
        with self.engine.precision_plugin.forward_context():
            target, logits = self.method.teacher(images).logits, self.method.student(images).logits
        soft = F.kl_div((logits.float() / 4).log_softmax(1), (target.float() / 4).softmax(1), reduction="batchmean")
        (optimizer,) = self.optimizers
        optimizer.zero_grad()
        (F.cross_entropy(logits.float(), labels) + 16 * soft).backward()
        optimizer.step()


def contender(kind: type[Contender], spec: RunSpec) -> Contender:
    """A method on its device, with a resident batch of noise."""
    engine = make_trainer(spec.config["trainer"], 1, Path(tempfile.gettempdir()), [])
    device, sizes = engine.strategy.root_device, spec.sizes
    count = spec.config["recipe"]["batch_size"]
    batch = resident_batch(count, sizes.in_chans, sizes.image_size, sizes.num_classes, device)
    method = untrained(spec).to(device)
    return kind(kind.__name__, method, method.stages[-1], batch, engine)


def timings(plan: Plan) -> list[Task]:
    """Floor, step and real epoch of `kd`, for each pair and setting; kernels and waits; and the loop of the field."""
    tasks = [
        Task(f"{pair}, {setting}", partial(time_epoch, plan, [*networks, *words]))
        for pair, networks in plan.pairs.items()
        for setting, words in SETTINGS.items()
    ]
    for pair, networks in plan.pairs.items():
        tasks += [
            Task(f"{pair}, torchvision loader", partial(time_field, plan, networks)),
            Task(f"{pair}, float32, kernels", partial(count_kernels, plan, networks)),
        ]
    return [*tasks, Task("waits in a real epoch", partial(count_waits, plan, networks))]


def time_epoch(plan: Plan, overrides: list[str], available: Time) -> Outcome:
    """Medians of floor and step in turn, then of real epochs and steps in turn."""
    start = time.perf_counter()
    spec = spec_of(plan.run("method=kd", *overrides))
    step, floor = contender(Contender, spec), contender(Floor, spec)
    rounds, fewest, most = (1, 2, 2) if plan.smoke else (5, 20, 700)
    for each in (floor, step):
        each.run(fewest)  # compiles, chooses kernels, takes memory
        each.run(fewest)
    one = step.seconds[-1]
    steps = min(max(int(0.1 * available.share / rounds / one), fewest), most)
    for _ in range(rounds):
        floor.run(steps)
        step.run(steps)
    left = available.share - (time.perf_counter() - start)
    figures = measure(spec.config, rounds, min(max(int(0.35 * left / (rounds + 1) / one), fewest), most))
    size = figures["batch_size"]
    ms = {
        "floor": 1e3 * statistics.median(floor.seconds[2:]),
        "step": 1e3 * statistics.median(step.seconds[2:]),
        "step between epochs": 1e3 * size / figures["bare_images_per_second"],
        "epoch": 1e3 * size / figures["epoch_images_per_second"],
    }
    text = ", ".join(f"{name} {value:.2f}" for name, value in ms.items())
    return Outcome(
        f"ms/step: {text}; {figures['epoch_images_per_second']:,.0f} images/s, "
        f"{figures['peak_memory_bytes'] / 2**20:,.0f} MiB",
        {"milliseconds": ms, "floor_seconds": floor.seconds, "step_seconds": step.seconds, **figures},
    )


def count_kernels(plan: Plan, networks: list[str], available: Time) -> Outcome:
    """Operators and kernels of a step, and how long the kernels keep the device busy."""
    step = contender(Contender, spec_of(plan.run("method=kd", *networks)))
    step.run(3)
    step.run(3)
    activities = [ProfilerActivity.CPU] if plan.smoke else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as record:
        step.run(3)
    events = record.events()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    operators = sum(event.name.startswith("aten::") for event in events) / 3
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 3e3
    wall = 1e3 * step.seconds[1]
    return Outcome(
        f"{operators:.0f} operators and {len(kernels) / 3:.0f} kernels a step, which take {busy:.2f} of {wall:.2f} ms",
        {"operators": operators, "kernels": len(kernels) / 3, "busy_ms": busy, "step_ms": wall},
    )


def count_waits(plan: Plan, networks: list[str], available: Time) -> Outcome:
    """How often the host waits for the device in two epochs of few steps and in two of more."""
    config = spec_of(plan.run("method=kd", *networks)).config
    few, more = (1, 2) if plan.smoke else (20, 60)
    places = {steps: places_of_waiting(lambda s=steps: measure(config, 1, s), plan.device) for steps in (few, more)}
    each = (len(places[more]) - len(places[few])) / (more - few) / 2
    text = f"{each:.2f} for each step, {len(places[few])} in two epochs of {few} steps and the start of a training"
    return Outcome(text, {"per_step": each, "places": Counter(places[few])}, each < 0.5)


class Pictures(Dataset):
    """Images in memory and transforms of torchvision, as the data sets of torchvision are."""

    def __init__(self, images: Any, labels: Any, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(self.images[position]), int(self.labels[position])


def time_field(plan: Plan, networks: list[str], available: Time) -> Outcome:
    """A bare loop in float32 as most projects have it: torchvision's transforms in 8 workers, and values every step."""
    spec = spec_of(plan.run("method=kd", *networks, *SETTINGS["float32"]))
    data, _ = sources.load(spec.config["dataset"], spec.sizes)
    side, padding = spec.sizes.image_size, spec.config["dataset"]["crop_padding"]
    transform = transforms.Compose([
        transforms.ToPILImage(), transforms.RandomCrop(side, padding), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(spec.sizes.mean, spec.sizes.std),
    ])  # fmt: skip
    size, workers = spec.config["recipe"]["batch_size"], 1 if plan.smoke else 8
    loader = DataLoader(Pictures(data.images, data.labels, transform), size, shuffle=True, num_workers=workers)
    method = untrained(spec).to(plan.device).to(memory_format=torch.contiguous_format)
    student, teacher = method.student.net, method.teacher.network.net
    optimizer = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4)
    warm, most = (1, 4) if plan.smoke else (50, 2000)
    count, start, end = 0, 0.0, time.perf_counter() + 0.7 * available.share
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # as RepDistiller and mdistiller
    for batch in (batch for _ in range(10) for batch in loader):
        field_step(student, teacher, optimizer, *(tensor.to(plan.device) for tensor in batch))
        count += 1
        if count == warm:
            start = time.perf_counter()
        if count > warm and (count == most or time.perf_counter() > end):
            break
    torch.backends.cudnn.benchmark = before
    seconds = (time.perf_counter() - start) / (count - warm)
    return Outcome(
        f"ms/step: {1e3 * seconds:.2f}; {size / seconds:,.0f} images/s with {workers} workers, channels first",
        {"milliseconds": 1e3 * seconds, "images_per_second": size / seconds, "steps": count, "workers": workers},
    )


def field_step(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """A step, and its loss and accuracy, which the host waits for."""
    with torch.no_grad():
        target = teacher(images)
    logits = student(images)
    soft = F.kl_div((logits / 4).log_softmax(1), (target / 4).softmax(1), reduction="batchmean")
    loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (logits.argmax(1) == labels).float().mean().item()


# ---------------------------------------------------------------- several processes on one device


def processes(plan: Plan) -> list[Task]:
    """Images per second of several processes that train on one device at the same time."""
    return [
        Task(f"{pair}, bf16, {count} at once", partial(train_together, plan, [*networks, *SETTINGS["bf16"]], count))
        for pair, networks in plan.pairs.items()
        for count in ((2,) if plan.smoke else (1, 2, 4))
    ]


def train_together(plan: Plan, overrides: list[str], count: int, available: Time) -> Outcome:
    """Start them, let them wait for one another, and add up their speeds."""
    words = plan.run("method=kd", *overrides)
    seconds = 0.3 if plan.smoke else min(20.0, 0.4 * available.share)
    gate = FORK.Barrier(count, timeout=available.left)
    with ProcessPoolExecutor(count, FORK, _remember_gate, (gate,)) as pool:
        speeds = list(pool.map(images_per_second, [words] * count, [seconds] * count))
    each = ", ".join(f"{speed:,.0f}" for speed in speeds)
    return Outcome(f"{sum(speeds):,.0f} images/s together ({each})", {"images_per_second": speeds})


def _remember_gate(gate: Any) -> None:
    global _gate
    _gate = gate


def images_per_second(overrides: list[str], seconds: float) -> float:
    """The speed of steps on augmented batches of the data, from when all processes are ready."""
    spec = spec_of(overrides)
    step, data = contender(Contender, spec), data_of(spec)
    data.trainer = step.engine  # which says on what device the data are to be
    batches = (batch for epoch in range(10**6) for batch in _epoch(data, epoch))
    for _ in range(10):
        step.step()
    _gate.wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            bare_step(step.method, step.optimizers, next(batches), step.engine)
        count += 10
        if step.batch.images.is_cuda:
            torch.cuda.synchronize()
    return count * data.batch_size / (time.perf_counter() - start)


def _epoch(data: Any, epoch: int) -> Iterator[Batch]:
    data.set_epoch(epoch)
    return iter(data.train_dataloader())

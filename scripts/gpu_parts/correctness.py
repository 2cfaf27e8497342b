"""The machine, methods on the device against methods on the CPU, and the tests that need a GPU."""

import math
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gpu_parts.parts import ROOT, Outcome, Plan, Task, Time
from kdbench.config.groups import options
from kdbench.console import console
from kdbench.data.batch import Batch
from kdbench.records.environment import environment
from kdbench.specs.resolve import spec_of
from kdbench.specs.spec import RunSpec
from kdbench.speed.epochs import resident_batch, untrained

# Largest relative differences between CUDA and CPU, both in float32 without TF32.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


# ---------------------------------------------------------------- machine


def machine(plan: Plan) -> list[Task]:
    """What all figures depend on."""
    return [Task("versions", partial(describe, plan))]


def describe(plan: Plan, available: Time) -> Outcome:
    """Versions, device and driver."""
    figures = environment()
    if not (plan.smoke or figures["gpu"]):
        return Outcome("torch sees no CUDA device; --smoke tests this script on the CPU", good=False)
    figures |= {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32 of convolutions": torch.backends.cudnn.allow_tf32,
        "tf32 of matrices": torch.backends.cuda.matmul.allow_tf32,
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total,power.limit", "--format=csv,noheader"]
        figures["driver, memory, power"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    about = {**figures, **figures["versions"]}
    names = ("gpu", "driver, memory, power", "cuda", "torch", "kdbench", "kdbench source", "cpus", "threads")
    return Outcome(", ".join(f"{name} {about[name]}" for name in names if about.get(name)), figures)


# ---------------------------------------------------------------- correctness


class SameDraws(TorchDispatchMode):
    """Draws random numbers on the CPU, whatever the device, so that two devices draw the same."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))
        args_on_cpu, kwargs_on_cpu = tree_map(_on_cpu, (args, kwargs))
        drawn = operation(*args_on_cpu, **kwargs_on_cpu)
        if operation._schema.is_mutable:
            return args[0].copy_(drawn)
        return tree_map(lambda value: value.to(device), drawn)  # dropout returns a mask, too


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.cpu() if isinstance(value, Tensor) else value


def correctness(plan: Plan) -> list[Task]:
    """Losses and gradients of every method on the device against those on the CPU."""
    return [Task(name, partial(compare_devices, plan, name)) for name in options("method")]


def compare_devices(plan: Plan, name: str, time: Time) -> Outcome:
    """The largest relative differences between device and CPU, and how often a step makes the host wait."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    size = 8 if plan.smoke else 32
    data = ["dataset=fake", f"dataset.image_size={size}", "dataset.num_classes=10", "recipe.batch_size=16"]
    spec = spec_of([*data, "teacher=resnet14", "student=resnet8", f"method={name}", *plan.overrides])
    expected, _ = losses_and_gradients(spec, torch.device("cpu"))
    actual, method = losses_and_gradients(spec, plan.device)
    loss, gradient = largest_difference(actual, expected)
    batch = fixed_batch(spec, plan.device)
    places = places_of_waiting(lambda: sum(method.batch_losses(batch).values()).backward(), plan.device)
    return Outcome(
        f"{plan.device.type} against cpu, relative difference: losses {loss:.0e} (<= {LOSS_TOLERANCE:.0e}), "
        f"gradients {gradient:.0e} (<= {GRADIENT_TOLERANCE:.0e}); the host waits {len(places)} times in a step",
        {"loss_difference": loss, "gradient_difference": gradient, "host_waits": Counter(places)},
        loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE,
    )


def losses_and_gradients(spec: RunSpec, device: torch.device) -> tuple[list[dict[str, dict[str, Tensor]]], Any]:
    """Losses and gradients by name, of each stage of a method with the same weights, batch and random draws.

    Returns:
        For each stage `losses` and `gradients`, on the CPU; and the method.
    """
    torch.manual_seed(0)  # the weights of the teacher
    method = untrained(spec).to(device)
    batch = fixed_batch(spec, device)
    stages, epoch = [], 0
    for stage in method.stages:
        method.enter_epoch(epoch)
        epoch += stage.recipe["epochs"]
        method.zero_grad()
        torch.manual_seed(1)
        with SameDraws():
            losses = method.batch_losses(batch)
            torch.stack(list(losses.values())).sum().backward()
        gradients = {key: value.grad.cpu() for key, value in method.named_parameters() if value.grad is not None}
        stages.append({"losses": {key: loss.detach().cpu() for key, loss in losses.items()}, "gradients": gradients})
    return stages, method


def fixed_batch(spec: RunSpec, device: torch.device) -> Batch:
    """The same random batch on every device."""
    sizes, count = spec.sizes, spec.config["recipe"]["batch_size"]
    torch.manual_seed(2)
    batch = resident_batch(count, sizes.in_chans, sizes.image_size, sizes.num_classes, torch.device("cpu"))
    return Batch(*(tensor.to(device) for tensor in batch[:3]))


def largest_difference(actual: Sequence[Mapping], expected: Sequence[Mapping]) -> tuple[float, float]:
    """Largest relative differences, of losses and of gradients (by their norms, one for each parameter).

    A loss or gradient of less than a thousandth of all together is compared with that thousandth.

    Raises:
        ValueError: the names differ.
    """
    largest = []
    for kind in ("losses", "gradients"):
        worst = 0.0
        for one, other in zip(actual, expected, strict=True):
            if one[kind].keys() != other[kind].keys():
                raise ValueError(f"{kind} {sorted(one[kind])} are not {sorted(other[kind])}")
            least = 1e-3 * math.hypot(*(float(value.norm()) for value in other[kind].values()))
            for name, value in other[kind].items():
                difference = float((one[kind][name] - value).norm()) / max(float(value.norm()), least, 1e-12)
                worst = max(worst, difference if math.isfinite(difference) else math.inf)
        largest.append(worst)
    return largest[0], largest[1]


def places_of_waiting(work: Callable[[], object], device: torch.device) -> list[str]:
    """The lines of Python at which the host waited for the device during `work`; none on the CPU."""
    if device.type == "cpu":
        work()
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]


# ---------------------------------------------------------------- tests


def tests(plan: Plan) -> list[Task]:
    """The tests that need a GPU."""
    return [Task("pytest -m gpu", partial(run_tests, plan))]


def run_tests(plan: Plan, time: Time) -> Outcome:
    """Run them, or only collect them where there is no GPU."""
    files = [str(file) for file in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n0", "-p", "no:cacheprovider", *files]
    if plan.smoke:
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=time.left)
    console.print(done.stdout + done.stderr)
    summary = done.stdout.strip().splitlines()[-1].strip("= ")
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|errors?|skipped)", summary)}
    return Outcome(summary, counts, done.returncode == 0)

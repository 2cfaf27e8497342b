"""`kdbench doctor`: is this machine ready? Checks versions, device, data, disk and W&B without network or training."""

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from kdbench.console import show
from kdbench.records.record import all_records, default_outputs

HELP = "check device, data, disk space, W&B and versions"
PACKAGES = "torch torchvision pytorch-lightning hydra-core omegaconf timm wandb".split()
MALICIOUS = {"2.6.2", "2.6.3"}  # of lightning and pytorch-lightning: GHSA-w37p-236h-pfx3
LOW_DISK = 5 * 2**30  # bytes


class Check(NamedTuple):
    """One thing that was checked."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    supported = (3, 11) <= sys.version_info < (3, 14)
    python = sys.version.split()[0]
    yield Check("python", "ok", python) if supported else Check("python", "warn", f"{python}: 3.11 to 3.13 are tested")
    for package in PACKAGES:
        installed = _installed(package)
        yield (
            Check(package, "ok", installed)
            if installed
            else Check(package, "fail", "not installed: pip install kdbench")
        )


def _lightning() -> Iterator[Check]:
    for package in ("pytorch-lightning", "lightning"):
        installed = _installed(package)
        if installed in MALICIOUS:
            advice = "is a malicious upload (GHSA-w37p-236h-pfx3): remove it, and change every password it could read"
            yield Check("lightning", "fail", f"{package} {installed} {advice}")
    if all(importlib.util.find_spec(module) for module in ("lightning", "pytorch_lightning")):
        detail = "lightning and pytorch_lightning are both installed: import only the latter, their classes differ"
        yield Check("lightning", "warn", detail)


def _device() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check("device", "ok", f"CPU, {torch.get_num_threads()} threads; no CUDA device")
        yield Check("bf16", "ok", "works on the CPU, but is seldom faster there")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Check(f"device {index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Check("bf16", "ok", "supported")
    else:
        yield Check("bf16", "warn", "not supported by this device: use trainer.precision=16-mixed")


def _data() -> Iterator[Check]:
    from kdbench.data.embedded import FILES
    from kdbench.data.sources import ARCHIVES, data_root

    for name, (package, file, *_) in FILES.items():
        spec = importlib.util.find_spec(package)
        places = (spec and spec.submodule_search_locations) or []
        if any((Path(place) / file).is_file() for place in places):
            yield Check(name, "ok", f"comes with {package}")
        else:
            yield Check(name, "fail", f"{file} is not in {package}: reinstall {package}")
    root = data_root({"root": None})
    there = [name for name, place in ARCHIVES.items() if (root / place).exists()]
    if there:
        yield Check("data root", "ok", f"{root}: {', '.join(there)}")
    else:
        state = "holds no data set" if root.is_dir() else "does not exist"
        yield Check("data root", "warn", f"{root} {state}: dataset.download=true, or set KDBENCH_DATA")


def _outputs() -> Iterator[Check]:
    root = default_outputs().absolute()
    nearest = next(place for place in (root, *root.parents) if place.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        runs = sum(bool(record.status) for record in all_records(root))
        yield Check("outputs", "ok", f"{root}: {runs} runs")
    else:
        yield Check("outputs", "fail", f"{root} cannot be written: set KDBENCH_OUTPUTS")
    free = shutil.disk_usage(nearest).free
    yield Check("disk", "ok" if free >= LOW_DISK else "warn", f"{free / 2**30:.1f} GiB free at {nearest}")


def _wandb() -> Iterator[Check]:
    from kdbench.loggers.wandb import wandb_mode

    try:
        mode, reason = wandb_mode("auto")
    except Exception as error:  # whatever it is, runs go on without W&B
        yield Check("W&B", "warn", f"off: {error}")
    else:
        yield Check("W&B", "ok", f"{mode} ({reason})")


def report() -> list[Check]:
    """Check everything. A check that itself breaks (torch cannot be imported, say) counts as a failure."""
    looks: dict[str, Callable[[], Iterator[Check]]] = {
        "packages": _packages, "lightning": _lightning, "device": _device, "data": _data, "outputs": _outputs,
        "W&B": _wandb,
    }  # fmt: skip
    checks: list[Check] = []
    for name, look in looks.items():
        try:
            checks += look()
        except Exception as error:
            checks.append(Check(name, "fail", f"{type(error).__name__}: {error}"))
    return checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Print the report as a table; returns 1 if anything failed, else 0."""
    checks = report()
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "state", "detail", title="kdbench doctor", title_justify="left")
    for check in checks:
        # Text, because a path may hold brackets, which are markup to rich
        table.add_row(check.name, Text(check.status, styles[check.status]), Text(check.detail))
    show(table)
    return int(any(check.status == "fail" for check in checks))

"""One run from its checked configuration to its record. Imports torch only where a run has to be done."""

import logging
from pathlib import Path
from typing import Any

from kdbench import lightweight, loggers, teachers
from kdbench.console import speak
from kdbench.data import imbalance, noise, sources
from kdbench.errors import RunFailed, UserError
from kdbench.run import Run, identify, needs_teacher, reason

log = logging.getLogger("kdbench")


def conduct(cfg: dict[str, Any], role: str | None = None) -> Run:
    """Bring a run to its end: found finished, continued where it stopped, or done from the start.

    Args:
        cfg: the checked configuration.
        role: `teacher` if another run needs this one; else what the method says.

    Raises:
        UserError: what the user asked for cannot be; nothing was touched.
        RunFailed: a loss that is not finite, a full disk, not enough memory; the record says so.
    """
    speak()
    preflight(cfg)
    run = run_of(cfg)
    if cfg["stage"] == "teachers":
        for own in teachers_of(cfg):
            conduct(own, "teacher")
        return run
    with run.claimed():
        if cfg["force"]:
            run.set_aside()
        if result := run.result():
            log.info("%s: already done, test accuracy %.2f %%", run.name, 100 * result["test"]["accuracy"])
        else:
            _do(run, cfg, role or ("distill" if needs_teacher(cfg) else "baseline"))
    log.info("record: %s", run.directory)
    return run


def _do(run: Run, cfg: dict[str, Any], role: str) -> None:
    sources.verify(cfg["dataset"])  # before torch, whose import takes seconds
    from torch import OutOfMemoryError

    from kdbench.distill import distill, rehearse
    from kdbench.methods.base import NonFiniteLoss

    rehearse(cfg)
    try:
        with run.recorded(cfg):
            distill(run, cfg, role, conduct)
    except (NonFiniteLoss, OSError, OutOfMemoryError) as error:
        why = reason(error)
        raise RunFailed(f"{run.name} failed: {why}; see {run.directory}/train.log", why) from error


def preflight(cfg: dict[str, Any]) -> None:
    """Refuse at once what cannot work.

    Raises:
        UserError: as `check`; no such device; a teacher's checkpoint that cannot be loaded.
    """
    check(cfg)
    _check_device(cfg["trainer"]["device"], cfg["trainer"]["precision"])
    if needs_teacher(cfg):
        teachers.check(cfg)


def check(cfg: dict[str, Any]) -> None:
    """Refuse at once what can be seen not to work without torch.

    Raises:
        UserError: no such data, options that contradict each other, a missing package.
    """
    if (name := cfg["method"]["name"]) in cfg["plus"]:
        raise UserError(f"plus=[{name}] is not possible: it is the method already")
    num_classes = sources.check(cfg["dataset"])
    if lightweight.needed(cfg):
        lightweight.check(cfg)
    imbalance.check(cfg["imbalance"], num_classes)
    noise.check(cfg["noise"], num_classes, cfg["dataset"]["source"])
    _check_recipe(cfg["recipe"], "recipe")
    loggers.check(cfg["logger"])
    if needs_teacher(cfg) and not cfg["teacher"]["checkpoint"]:
        _check_recipe(cfg["teacher"]["recipe"], "teacher.recipe")


def _check_device(device: str, precision: str) -> None:
    if device != "gpu" and precision != "16-mixed":
        return
    import torch

    cuda = torch.cuda.is_available()
    if device == "gpu" and not cuda:
        raise UserError("trainer.device=gpu is not possible: torch sees no CUDA device; allowed: auto, cpu")
    if precision == "16-mixed" and (device == "cpu" or not cuda):  # Lightning would take bfloat16 instead
        raise UserError("trainer.precision=16-mixed needs a CUDA device; on the CPU: 32-true, bf16-mixed")


def _check_recipe(recipe: dict[str, Any], key: str) -> None:
    drops, warmup, epochs = recipe["drops"], recipe["warmup_epochs"], recipe["epochs"]
    if not all(isinstance(drop, int | float) and 0 < drop < 1 for drop in drops):
        raise UserError(f"{key}.drops={drops} is not allowed: fractions of the training, each in (0, 1)")
    if recipe["stop_after"] is not None and recipe["stop_after"] > epochs:
        raise UserError(f"{key}.stop_after={recipe['stop_after']} is not allowed: {key}.epochs={epochs} is less")
    if warmup >= epochs:
        raise UserError(f"{key}.warmup_epochs={warmup} is not allowed: it must be < {key}.epochs={epochs}")


def run_of(cfg: dict[str, Any]) -> Run:
    """The run that a configuration means."""
    teacher = teachers.identity(cfg, run_of) if needs_teacher(cfg) else None
    light = run_of(lightweight.own_config(cfg)).id if lightweight.needed(cfg) else None
    fingerprint = sources.fingerprint(cfg["dataset"])
    labels = noise.fingerprint(cfg["noise"])
    identity = identify(cfg, fingerprint=fingerprint, teacher=teacher, lightweight=light, noise_file=labels)
    return Run(identity, Path(cfg["outputs"]))


def teachers_of(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """Configurations of the runs that train what teaches `cfg`: its teacher, unless a file, and its lightweight one."""
    found = []
    if needs_teacher(cfg) and not cfg["teacher"]["checkpoint"]:
        found.append(teachers.own_config(cfg))
    if lightweight.needed(cfg):
        found.append(lightweight.own_config(cfg))
    return found

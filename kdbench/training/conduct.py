"""Conducting a run: its dependencies first, then the run itself. Imports torch only if there is something to train."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from kdbench.console import show_messages
from kdbench.data import sources
from kdbench.errors import RunFailed, UserError
from kdbench.records.record import Record
from kdbench.records.writer import RecordWriter, reason
from kdbench.specs.spec import FinishedRun, RunSpec
from kdbench.training.quality import check_teacher

if TYPE_CHECKING:  # it imports torch
    from kdbench.training.lockstep import Member

log = logging.getLogger("kdbench")


def conduct(spec: RunSpec) -> Record:
    """Bring a run to its end: take its result if it is finished, continue it where it stopped, or train it.

    Returns:
        Its record; with `stage=teachers` only its dependencies are finished.

    Raises:
        UserError: what the user asked for is not possible; nothing was trained for it.
        RunFailed: a loss that is not finite, a full disk, not enough memory, in the run or in a dependency; the record
            of the one that failed says so.
    """
    show_messages()
    check_device(spec.config["trainer"])
    if spec.config["stage"] == "teachers":
        _finish_dependencies(spec)
        return spec.record
    if spec.record.result and not spec.config["force"]:
        _say_done(spec)
    else:
        rehearse(spec)
        train(spec, _finish_dependencies(spec))
    log.info("record: %s", spec.directory)
    return spec.record


def _finish_dependencies(spec: RunSpec) -> dict[str, FinishedRun]:
    return {name: FinishedRun(needed, conduct(needed)) for name, needed in spec.dependencies.items()}


def _say_done(spec: RunSpec) -> None:
    if teacher := spec.record.finished.get("teacher"):
        check_teacher(teacher["test_accuracy"], spec.config["teacher"])
    log.info("%s: already done, test accuracy %.2f %%", spec.name, 100 * spec.record.finished["test"]["accuracy"])


def check_device(trainer: Mapping[str, Any]) -> None:
    """Refuse a device that is not there, or that cannot compute in the precision asked for.

    Args:
        trainer: the `trainer` group.

    Raises:
        UserError: see above.
    """
    device, precision = trainer["device"], trainer["precision"]
    if device != "gpu" and precision != "16-mixed":
        return
    import torch

    cuda = torch.cuda.is_available()
    if device == "gpu" and not cuda:
        raise UserError("trainer.device=gpu is not possible: torch sees no CUDA device; allowed: auto, cpu")
    if precision == "16-mixed" and (device == "cpu" or not cuda):  # Lightning would take bfloat16 instead
        raise UserError("trainer.precision=16-mixed needs a CUDA device; on the CPU: 32-true, bf16-mixed")


def rehearse(spec: RunSpec) -> None:
    """Refuse what only torch can see, before a teacher is trained: images, and networks that cannot work together."""
    sources.verify(spec.config["dataset"])  # before torch, whose import takes seconds
    from kdbench.training import own_callbacks
    from kdbench.training.assemble import assemble, untrained_teacher

    if spec.config["trainer"]["callbacks"]:
        own_callbacks.rehearse(spec.config["trainer"], spec.directory)
    assemble(spec, untrained_teacher(spec))


def train(spec: RunSpec, finished: Mapping[str, FinishedRun], member: "Member | None" = None) -> None:
    """Train a run, unless another process has finished it meanwhile.

    Args:
        spec: of the run, rehearsed.
        finished: the runs it depends on.
        member: of the group of runs that are trained together with it; None for a run alone.

    Raises:
        UserError, RunFailed: as `conduct`.
    """
    from torch import OutOfMemoryError

    from kdbench.methods.machinery.meter import NonFiniteLoss
    from kdbench.training.distill import distill
    from kdbench.training.trainer import unchanged_flags

    writer = RecordWriter(spec.directory)
    with writer.claimed():
        if spec.config["force"]:
            writer.set_aside()
        elif spec.record.result:  # by another process, which this one has waited for
            _say_done(spec)
            return
        try:
            turns = member.taking_part() if member else nullcontext()
            with turns, writer.recorded(spec.config), unchanged_flags():
                distill(spec, finished, writer, member)
        except (NonFiniteLoss, OSError, OutOfMemoryError) as error:
            why = reason(error)
            raise RunFailed(f"{spec.name} failed: {why}; see {spec.record.log}", why) from error

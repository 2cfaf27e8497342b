"""Training one attached method to its end, and measuring it."""

import logging
import resource
import time
from typing import Any

import torch

from kdbench.data.module import DataModule
from kdbench.evaluation.assessment import assess
from kdbench.evaluation.passes import score, score_student
from kdbench.loggers import Guarded
from kdbench.methods.machinery.module import DistillationModule
from kdbench.records import checkpoints
from kdbench.records.writer import RecordWriter
from kdbench.specs.spec import RunSpec
from kdbench.training import own_callbacks, sharing, view_cache
from kdbench.training.averaging import Averaging
from kdbench.training.callbacks import History, Saver, Stages, Streams
from kdbench.training.lockstep import Member, Stopped
from kdbench.training.progress import ProgressDisplay
from kdbench.training.sharing import Turns
from kdbench.training.trainer import make_profiler, make_trainer

log = logging.getLogger("kdbench")


def fit(
    method: DistillationModule,
    data: DataModule,
    spec: RunSpec,
    writer: RecordWriter,
    mirror: Guarded,
    display: ProgressDisplay,
    member: Member | None = None,
) -> dict[str, Any]:
    """Train to the end, from the newest whole checkpoint if there is one, and score the test set once.

    Args:
        method: attached.
        data: loaded.
        spec: of the run.
        writer: of its record.
        mirror: receives the metrics.
        display: shows the progress.
        member: of the group of runs that are trained together; None for a run alone.

    Returns:
        The measured part of the result: `test`, `fidelity`, `members`, `val`, `best_on_test`, `cost`.
    """
    config, epochs, record = spec.config, method.total_epochs, writer.record
    options = config["trainer"]
    averaging = Averaging.of(config["recipe"])
    clock = member.clock if member else time.perf_counter
    history = History(writer, data, mirror, display, options["test_every"], averaging, clock)
    saver = Saver(writer, options["checkpoint_seconds"])
    averages = [averaging] if averaging else []
    # the user's come before those that read the weights at the end of a step or an epoch, and before the one that saves
    own = own_callbacks.create(options["callbacks"])
    turns = [Turns(member)] if member else []
    callbacks = [*turns, Stages(), Streams(config["seed"], data), *own, *averages, history, saver, display]
    profiler = make_profiler(options["profiler"], record.directory)
    trainer = make_trainer(options, epochs, record.directory, callbacks, config["recipe"]["accumulate"], profiler)
    start = checkpoints.newest(record.checkpoints)
    if start:
        log.info("continuing at epoch %d of %d", checkpoints.next_epoch(start) + 1, epochs)
        method.enter_epoch(checkpoints.next_epoch(start) - 1)  # the state of its optimiser is in the checkpoint
    data.set_epoch(checkpoints.next_epoch(start))
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    cache = view_cache.start(spec, method, data, device)
    if member:
        sharing.join(method, cache.parts if cache else None, member, config["teacher"]["cache_rounding"] == "exact")
    with display.showing(epochs):
        try:
            with own_callbacks.refusing():
                trainer.fit(method, datamodule=data, ckpt_path=start, weights_only=True)
        except Stopped as stopped:
            raise stopped.why from None
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
                raise end.__context__ from None
            raise
    if profiler:
        log.info("profile: %s", record.directory / "fit-profile.txt")
    method.to(device)
    scores = score(trainer, method, data.test_dataloader(), method.predictions)
    if averaging and averaging.exported:  # the other classifiers and the ensemble are those that were trained together
        averaging.apply(method.student)
        scores["student"] = score_student(trainer, method, data.test_dataloader())
    assessed = assess(trainer, method.student, method.teacher, data)
    rows = record.epochs
    last = rows[-1] if rows else {}  # there is none where recipe.stop_after is 0
    validated = {key[4:]: value for key, value in last.items() if key.startswith("val/")}
    best = history.best_on_test or {"accuracy": None, "epoch": None}
    return {
        "test": {**assessed["test"], **scores["student"]},
        "fidelity": assessed["fidelity"],
        "members": members(scores),
        "val": validated or dict.fromkeys(scores["student"]),
        "best_on_test": {**best, "selection_rule": False},
        "cost": {
            "train_seconds": history.seconds,
            "images_per_second": history.images / history.seconds if history.seconds else None,
            "peak_memory_bytes": peak_memory(device),
            "trained_together": len(member.group.members) if member else 1,
            "teacher_answers_read": cache.read / cache.asked if cache and cache.asked else None,
        },
    }


def members(scores: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """What is recorded where a method trains more than one classifier: each, and mean and best of the single ones."""
    single = [each["accuracy"] for name, each in scores.items() if name != "ensemble"]
    if len(single) < 2:
        return None
    best = {"accuracy": max(single), "selected_on_test": True}
    return {"each": scores, "mean": {"accuracy": sum(single) / len(single)}, "best": best}


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the CUDA allocator since the run began, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

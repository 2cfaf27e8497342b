"""Doing a run: data, teacher, method, training, and the result that is left behind."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from kdbench import loggers
from kdbench.files import digest
from kdbench.models.cost import flops, parameters
from kdbench.records import weights
from kdbench.records.environment import versions
from kdbench.records.record import Record
from kdbench.records.writer import RecordWriter
from kdbench.specs.spec import FinishedRun, RunSpec
from kdbench.training import sharing
from kdbench.training.assemble import assemble, data_of
from kdbench.training.fit import fit
from kdbench.training.lockstep import Member
from kdbench.training.progress import ProgressDisplay
from kdbench.training.teachers import teacher_of

log = logging.getLogger("kdbench")
# parts of the result that mirrors show
_SHOWN = ("test", "members", "val", "fidelity", "cost", "teacher")


def distill(
    spec: RunSpec, finished: Mapping[str, FinishedRun], writer: RecordWriter, member: Member | None = None
) -> None:
    """Train the student of a run, measure it, and write its result.

    Args:
        spec: the run.
        finished: the runs it depends on.
        writer: of its record, claimed and being recorded.
        member: of the group of runs that are trained together; None for a run alone.

    Raises:
        UserError: data that cannot be read, a teacher that is damaged or too bad.
    """
    data = sharing.data_for(member, partial(data_of, spec)) if member else data_of(spec)
    teacher = teacher_of(spec, finished, data)
    method = assemble(spec, teacher.network if teacher else None)
    method.receive(finished)
    log.info(
        "%s: %d training images (the last partial batch of an epoch is dropped), %d validation, %d test",
        spec.name, data.train_size, data.val_size, data.test_size,
    )  # fmt: skip
    display = ProgressDisplay(spec.name, spec.config["trainer"]["progress"], alone=member is None)
    mirror = loggers.start(spec.config["logger"], _info(spec))
    exit_code = 1
    try:
        measured = fit(method, data, spec, writer, mirror, display, member)
        weights.save(writer.record.weights, method.export(), {"name": spec.config["student"]["name"], "run": spec.id})
        measured["cost"] |= {
            "teacher_seconds": _training_seconds(finished),
            "parameters": parameters(method.student.net),
            "extra_parameters": method.extra_parameters(),
            "flops": flops(method.student, data.in_chans, data.image_size),
        }
        result = {
            "id": spec.id,
            "name": spec.name,
            "role": spec.role,
            **measured,
            "teacher": teacher and {"name": teacher.name, "id": teacher.id, "test_accuracy": teacher.test_accuracy},
            "labels_hash": data.labels_hash,
            "imbalance": data.imbalance_record,
            "noise": data.noise_record,
            "sizes": spec.sizes._asdict(),
            "weights_sha256": digest(writer.record.weights),
            "versions": versions(),
            "facts": spec.identity.facts,
            "config": spec.config,
        }
        writer.finish(result)
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = 130
        raise
    except SystemExit as end:
        exit_code = int(end.code or 1)
        raise
    finally:
        done = Record(spec.directory).result or {}
        mirror.finish({key: done[key] for key in _SHOWN if done.get(key)}, exit_code)
    log.info("%s: test accuracy %.2f %%", spec.name, 100 * result["test"]["accuracy"])


def _training_seconds(finished: Mapping[str, FinishedRun]) -> float | None:
    """What the runs that a run depends on took to train; None where there is none."""
    seconds = [run.record.finished["cost"]["train_seconds"] for run in finished.values()]
    return sum(seconds) if seconds else None


def _info(spec: RunSpec) -> loggers.RunInfo:
    cfg: Mapping[str, Any] = spec.config
    kinds = [cfg["method"]["name"], *cfg["plus"], *(cfg[group]["name"] for group in ("dataset", "noise", "imbalance"))]
    record = spec.record
    return loggers.RunInfo(
        id=record.attempt,
        name=spec.name,
        directory=spec.directory,
        group=spec.identity.setting,
        job_type=spec.role,
        tags=[kind for kind in kinds if kind != "none"],
        config=dict(cfg),
    )

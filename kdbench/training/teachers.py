"""The teacher of a run: from a finished run, or from a file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.config.networks import network_options
from kdbench.data.module import DataModule
from kdbench.data.sources import Sizes
from kdbench.evaluation.passes import score
from kdbench.methods.ce import CE
from kdbench.models import fitting
from kdbench.models.build import build
from kdbench.models.features import Network
from kdbench.models.trained import trained_network
from kdbench.records import teacher_files, weights
from kdbench.specs.spec import FinishedRun, RunSpec
from kdbench.training.quality import check_teacher
from kdbench.training.trainer import make_trainer

log = logging.getLogger("kdbench")


class TrainedTeacher(NamedTuple):
    """A network ready to teach.

    Attributes:
        network: with its weights.
        name: of the network.
        id: of the run that trained it, or of its file.
        test_accuracy: a fraction.
    """

    network: Network
    name: str
    id: str
    test_accuracy: float


def teacher_of(spec: RunSpec, finished: Mapping[str, FinishedRun], data: DataModule) -> TrainedTeacher | None:
    """The teacher that a run learns from, if any; one that comes as a file is measured on the test set first.

    Raises:
        UserError: weights that are damaged, or an accuracy below `teacher.min_accuracy`.
    """
    options = spec.config["teacher"]
    if run := finished.get("teacher"):
        accuracy = run.record.finished["test"]["accuracy"]
        teacher = TrainedTeacher(trained_network(run.record), options["name"], run.spec.id, accuracy)
    elif file_id := spec.identity.facts["dependencies"].get("teacher"):
        network, notes = network_from_file(options, spec.sizes)
        if options["mean"] is None or options["std"] is None:
            notes.append("images normalised as for the student, because teacher.mean or teacher.std is not given")
        log.info("teacher.checkpoint=%s: %s", options["checkpoint"], ", ".join(notes))
        teacher = TrainedTeacher(network, options["name"], file_id, _test_accuracy(network, spec, data))
    else:
        return None
    log.info("teacher %s: test accuracy %.2f %%", teacher.name, 100 * teacher.test_accuracy)
    check_teacher(teacher.test_accuracy, options)
    return teacher


def network_from_file(teacher: Mapping[str, Any], sizes: Sizes) -> tuple[Network, list[str]]:
    """The network of `teacher.checkpoint`, and what was done to the file's names and tensors.

    Args:
        teacher: the `teacher` group; that of an older record may lack `classes`.
        sizes: of the data.

    Raises:
        UserError: the file cannot be read, or belongs to another network or other classes.
    """
    mean, std = (_by_channel(teacher[key], sizes.in_chans) for key in ("mean", "std"))
    known = sizes._replace(mean=mean or sizes.mean, std=std or sizes.std)
    network = build(**network_options(teacher), **known._asdict())
    path, classes = Path(teacher["checkpoint"]), teacher.get("classes")
    name = f"teacher.checkpoint={path}"
    state, notes = teacher_files.state_for(network.net, path, "teacher.checkpoint")
    state = fitting.of_classes(network, state, classes, name)
    state, resampled = fitting.resampled(network, state, name)
    weights.load_into(network.net, state, name)
    chosen = ["only the outputs teacher.classes kept"] if classes is not None else []
    return network, [*notes, *chosen, *resampled]


def _by_channel(values: list[float] | None, channels: int) -> tuple[float, ...]:
    """One value per channel, of which a single one stands for all; nothing for None."""
    return tuple(values or ()) * (channels if values and len(values) == 1 else 1)


def _test_accuracy(network: Network, spec: RunSpec, data: DataModule) -> float:
    trainer = make_trainer(spec.config["trainer"], 1, spec.directory, [])
    alone = CE().attach(network, None).to(trainer.strategy.root_device)
    return score(trainer, alone, data.test_dataloader(), alone.predictions)["student"]["accuracy"]

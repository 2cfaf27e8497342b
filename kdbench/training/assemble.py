"""Putting a run together: data, networks and method, each initialised from a random stream of its own."""

from pathlib import Path

import torch

from kdbench.config.networks import network_options
from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.methods.create import create
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.build import build
from kdbench.models.features import Network
from kdbench.models.initial import start_from
from kdbench.records.identity import needs_teacher
from kdbench.specs.spec import RunSpec
from kdbench.training.teachers import network_from_file
from kdbench.training.threads import use_threads


def data_of(spec: RunSpec) -> DataModule:
    """The data of a run, loaded.

    Raises:
        UserError: they cannot be read, or an option turns out to be impossible for them.
    """
    cfg = spec.config
    groups = cfg["dataset"], cfg["imbalance"], cfg["noise"]
    return DataModule(*groups, spec.sizes, cfg["recipe"], cfg["seed"]).prepare()


def untrained_teacher(spec: RunSpec) -> Network | None:
    """The teacher's network: of its file, or with random weights; None where no loss needs one.

    Raises:
        UserError: the network does not take such images, or the file cannot be loaded.
    """
    if not needs_teacher(spec.config):
        return None
    teacher = spec.config["teacher"]
    if teacher["checkpoint"]:
        return network_from_file(teacher, spec.sizes)[0]
    return build(**network_options(teacher), **spec.sizes._asdict())


def assemble(spec: RunSpec, teacher: Network | None) -> DistillationModule:
    """Build the student and the method around it, and give this process the threads of `trainer.threads`.

    Args:
        spec: of the run.
        teacher: trained or not; None where no loss needs one.

    Raises:
        UserError: a network does not take such images, or the method cannot work with these networks.
    """
    cfg = spec.config
    use_threads(cfg["trainer"])  # before the environment is recorded
    torch.manual_seed(derive(cfg["seed"], "student"))
    student = build(**network_options(cfg["student"]), **spec.sizes._asdict())
    if cfg["student"]["init"]:
        start_from(student, Path(cfg["student"]["init"]), "student.init")
    torch.manual_seed(derive(cfg["seed"], "method"))
    plus = {name: create(options) for name, options in cfg["plus"].items()}
    method = create(cfg["method"])
    method.attach(
        student, teacher, plus=plus, recipe=cfg["recipe"], seed=cfg["seed"], shuffle=cfg["teacher"]["shuffle"]
    )
    method.to(memory_format=torch.channels_last)
    if cfg["trainer"]["compile"]:
        for module in method.modules():
            if isinstance(module, Network):
                module.compile()
        if method.teacher is not None:
            method.teacher.network.compile()
    return method

"""Doing a run: data, teacher, student, method, training, and the result that is left behind."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import get_class

from kdbench import lightweight, loggers, teachers, weights
from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.evaluation.passes import score
from kdbench.files import digest, write_json
from kdbench.fit import fit, trainer
from kdbench.methods.base import Method
from kdbench.methods.ce import CE
from kdbench.methods.lwkd import Bank
from kdbench.models.build import build
from kdbench.models.cost import flops, parameters
from kdbench.models.features import Network
from kdbench.records import Record
from kdbench.run import Run, needs_teacher, versions
from kdbench.screen import Screen

log = logging.getLogger("kdbench")


def distill(run: Run, cfg: dict[str, Any], role: str, conduct: Callable[[dict[str, Any], str], Run]) -> None:
    """Data, teacher, student, method, training, record.

    Args:
        run: claimed and being recorded.
        cfg: its configuration.
        role: `teacher`, `distill` or `baseline`.
        conduct: brings another run, the teacher's, to its end.
    """
    data = data_of(cfg).prepare()
    sizes = teachers.sizes_of(cfg["dataset"])
    taught = None
    if teacher_id := run.identity.facts["teacher"]:
        taught = teachers.obtain(cfg, teacher_id, conduct, sizes)
        taught = _measured(taught, data, cfg, run)
    bank, bank_seconds = None, None
    if lightweight.needed(cfg):
        bank, bank_seconds = lightweight.bank_of(cfg, conduct)
    screen = Screen(run.name, cfg["trainer"]["progress"])
    method = assemble(cfg, taught, sizes, bank)
    log.info(
        "%s: %d training images (the last partial batch of an epoch is dropped), %d validation, %d test",
        run.name, data.train_size, data.val_size, data.test_size,
    )  # fmt: skip
    mirror = loggers.start(cfg["logger"], _info(run, cfg, role))
    code = 1
    try:
        measured = fit(method, data, run, cfg, mirror, screen)
        weights.save(run.weights, method.export(), {"name": cfg["student"]["name"], "run": run.id})
        measured["cost"] |= {
            "teacher_seconds": _total(taught.seconds if taught else None, bank_seconds),
            "parameters": parameters(method.student.net),
            "extra_parameters": method.extra_parameters(),
            "flops": flops(method.student, data.in_chans, data.image_size),
        }
        result = {
            "id": run.id,
            "name": run.name,
            "role": role,
            **measured,
            "teacher": taught and {"name": taught.name, "id": taught.id, "test_accuracy": taught.test_accuracy},
            "labels_hash": data.labels_hash,
            "imbalance": data.imbalance_record,
            "noise": data.noise_record,
            "normalisation": {"mean": sizes.mean, "std": sizes.std},
            "weights_sha256": digest(run.weights),
            "versions": versions(),
            "config": cfg,
        }
        write_json(run.directory / "result.json", result)
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    except SystemExit as end:
        code = int(end.code or 1)
        raise
    finally:
        done = run.result() or {}
        told = ("test", "members", "val", "fidelity", "cost", "teacher")
        mirror.finish({key: done[key] for key in told if done.get(key)}, code)
    log.info("%s: test accuracy %.2f %%", run.name, 100 * result["test"]["accuracy"])


def _total(*seconds: float | None) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if known else None


def data_of(cfg: dict[str, Any]) -> DataModule:
    """The data of a configuration, checked but not yet loaded."""
    return DataModule(cfg["dataset"], cfg["imbalance"], cfg["noise"], cfg["recipe"]["batch_size"], cfg["seed"])


def rehearse(cfg: dict[str, Any]) -> None:
    """Build all networks once, untrained, so that a pair which cannot work is refused before a teacher is trained.

    Raises:
        UserError: a network does not take such images, or the method cannot work with these networks.
    """
    assemble(cfg, untaught(cfg), teachers.sizes_of(cfg["dataset"]))


def untaught(cfg: dict[str, Any]) -> teachers.Taught | None:
    """The teacher's network with random weights; None where no loss needs one."""
    if not needs_teacher(cfg):
        return None
    network = build(
        cfg["teacher"]["name"], source=cfg["teacher"]["source"], **teachers.sizes_of(cfg["dataset"])._asdict()
    )
    return teachers.Taught(network, cfg["teacher"]["name"], "untrained", None, None)


def assemble(
    cfg: dict[str, Any], taught: teachers.Taught | None, sizes: teachers.Sizes, bank: Bank | None = None
) -> Method:
    """Build the student and the method around it, each from a random stream of its own.

    Without `bank`, a method that needs one gets a bank of nothing.
    """

    def network(stream: str, *number: int, name: str | None = None) -> Network:
        torch.manual_seed(derive(cfg["seed"], stream, *number))
        return build(name or cfg["student"]["name"], source=cfg["student"]["source"], **sizes._asdict())

    def another(name: str | None, number: int) -> Network:
        with torch.random.fork_rng(devices=()):
            return network("peer", number, name=name)

    student = network("student")
    torch.manual_seed(derive(cfg["seed"], "method"))
    plus = {name: _method(node) for name, node in cfg["plus"].items()}
    teacher = taught.network if taught else None
    method = _method(cfg["method"])
    if lightweight.needed(cfg):
        method.bank = bank or Bank(torch.zeros(sizes.num_classes, sizes.num_classes), torch.arange(sizes.num_classes))
    method.attach(student, teacher, plus, cfg["recipe"], another, cfg["teacher"]["shuffle"])
    method.to(memory_format=torch.channels_last)
    if cfg["trainer"]["compile"]:
        for module in method.modules():
            if isinstance(module, Network):
                module.compile()
        if method.teacher is not None:
            method.teacher.network.compile()
    return method


def _method(node: dict[str, Any]) -> Method:
    own = {key: value for key, value in node.items() if key not in ("name", "needs", "_target_")}
    return get_class(node["_target_"])(**own)


def _measured(taught: teachers.Taught, data: DataModule, cfg: dict[str, Any], run: Run) -> teachers.Taught:
    """Measure a teacher that came as a file; say how good it is, and stop if it is too bad."""
    if taught.test_accuracy is None:
        engine = trainer(cfg["trainer"], 1, run.directory, [])
        alone = CE().attach(taught.network, None).to(engine.strategy.root_device)
        test = score(engine, alone, data.test_dataloader(), alone.predictions)["student"]
        taught = taught._replace(test_accuracy=test["accuracy"])
    teachers.accept(taught, cfg["teacher"]["min_accuracy"])
    return taught


def _info(run: Run, cfg: dict[str, Any], role: str) -> loggers.RunInfo:
    kinds = [cfg["method"]["name"], *cfg["plus"], *(cfg[group]["name"] for group in ("dataset", "noise", "imbalance"))]
    return loggers.RunInfo(
        id=Record(run.directory).attempt,
        name=run.name,
        directory=run.directory,
        group=run.identity.setting,
        job_type=role,
        tags=[kind for kind in kinds if kind != "none"],
        config=cfg,
        resumed=any(run.checkpoints.glob("*.ckpt")),
    )

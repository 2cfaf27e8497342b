"""More about finished runs: what is recorded at the end of a run, attacks and corrupted images. Trains nothing.

The measurements go into `evaluation.json` beside the run's `result.json`, which stays as it is.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.data import sources
from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.errors import UserError
from kdbench.evaluation import attacks, corruptions
from kdbench.evaluation.assessment import Memorisation, assess
from kdbench.evaluation.passes import answers
from kdbench.models.features import Network, evaluating
from kdbench.models.trained import sizes_of, trained_network
from kdbench.records.identity import teacher_file_identity
from kdbench.records.record import Record, all_records
from kdbench.training.teachers import network_from_file
from kdbench.training.trainer import make_trainer

log = logging.getLogger("kdbench")


def chosen_runs(names: list[str], outputs: Path) -> list[Record]:
    """Finished runs that are named by directory, by `<name>-<id>` or by id.

    Raises:
        UserError: a name of no run, or one that is not finished.
    """
    by_name = {key: record for record in all_records(outputs) for key in (record.id, record.directory.name)}
    chosen = []
    for name in names:
        directory = Path(name)
        here = Record(directory.absolute())
        record = by_name.get(name) if here.state == "new" else here
        if record is None:
            raise UserError(f"{name} is no run: give its directory, or its id below {outputs / 'runs'}")
        if record.result is None:
            raise UserError(f"{name} is {record.state}; only finished runs can be evaluated")
        chosen.append(record)
    return chosen


def evaluate(record: Record, attack: bool, images: int | None, folder: Path | None) -> dict[str, Any]:
    """Measure a finished run again, and further.

    Args:
        record: of the run.
        attack: attack student and teacher, too.
        images: how many test images are attacked, the first ones; None for all.
        folder: of corrupted test images, as CIFAR-10-C; None without.

    Returns:
        `test` and `fidelity` as in `result.json`, `noisy` (wrongly labelled images), and as asked for `attacks` and
        `corruptions`.

    Raises:
        UserError: data or weights that are not those of the run; a folder that is not what it should be.
    """
    data = _data(record)
    kinds = None if folder is None else corruptions.check(folder, data.test_labels, _image_shape(data))
    engine = make_trainer({**record.config["trainer"], "device": "auto"}, 1, record.directory, [])
    device = engine.strategy.root_device
    student, teacher = trained_network(record).to(device), _teacher(record)
    teacher = None if teacher is None else teacher.to(device)
    measures = assess(engine, student, teacher, data)
    if data.wrong_size:
        measures["noisy"] = Memorisation(engine, teacher, data).shares(student)
    if attack:
        measures["attacks"] = attacked(student, teacher, data, device, images)
    if folder is not None and kinds is not None:
        measures["corruptions"] = corrupted(engine, student, data, folder, kinds)
    return measures


def _image_shape(data: DataModule) -> tuple[int, int, int]:
    return data.image_size, data.image_size, data.in_chans


def _data(record: Record) -> DataModule:
    """The data that a run was trained on, loaded."""
    cfg = record.config
    sources.check(cfg["dataset"])
    groups = cfg["dataset"], cfg["imbalance"], cfg["noise"]
    data = DataModule(*groups, sizes_of(record), cfg["recipe"], cfg["seed"]).prepare()
    if data.labels_hash != record.finished["labels_hash"]:
        raise UserError(f"{record.directory.name}: dataset={cfg['dataset']['name']} is not what it was trained on")
    return data


def _teacher(record: Record) -> Network | None:
    """The teacher, from its own run or its file; None, with a line, where it is not there any more."""
    if not record.finished["teacher"]:
        return None
    wanted, options = record.finished["teacher"]["id"], record.config["teacher"]
    if options["checkpoint"]:
        if Path(options["checkpoint"]).exists() and teacher_file_identity(options) == wanted:
            return network_from_file(options, sizes_of(record))[0]
    else:
        for other in all_records(record.directory.parent.parent):
            if other.id == wanted and other.result:
                return trained_network(other)
    log.warning("%s: its teacher %s is no longer there, so nothing is compared with it", record.name, wanted)
    return None


def attacked(
    student: Network, teacher: Network | None, data: DataModule, device: torch.device, images: int | None
) -> dict[str, Any]:
    """FGSM and PGD on the student, and how many images that fool the teacher fool the student.

    In float32, whatever the run's precision; the starts of PGD are the same for every run on the same data.

    Args:
        student: on the device.
        teacher: on the device; None without one.
        data: of the run.
        device: on which it is done.
        images: how many of the first test images; None for all.

    Returns:
        `eps`, `steps`, `step`, `images`; `fgsm_accuracy`, `pgd_accuracy` of the student; with a teacher
        `teacher_pgd_accuracy`, `transferability` and `transfer_count`, the number of images it is the share of.
    """
    student_fgsm, student_pgd, teacher_pgd, transferred = (attacks.Tally() for _ in range(4))
    seen = 0
    draws = [torch.Generator().manual_seed(derive(0, "attack", who)) for who in ("student", "teacher")]
    target, source = _logits(student), None if teacher is None else _logits(teacher)
    with evaluating(nn.ModuleList([student] if teacher is None else [student, teacher])):
        for pixels, labels in _first(data.test_dataloader(), images):
            pixels, labels = pixels.to(device), labels.to(device)
            seen += len(labels)
            student_fgsm += attacks.robust_accuracy(target, attacks.fgsm(target, pixels, labels), labels)
            student_pgd += attacks.robust_accuracy(target, attacks.pgd(target, pixels, labels, draws[0]), labels)
            if source is not None:
                aimed = attacks.pgd(source, pixels, labels, draws[1])
                teacher_pgd += attacks.robust_accuracy(source, aimed, labels)
                transferred += attacks.transferability(source, target, pixels, aimed, labels)
    measures: dict[str, Any] = {"eps": attacks.EPS, "steps": attacks.STEPS, "step": attacks.STEP, "images": seen}
    measures |= {"fgsm_accuracy": student_fgsm.share, "pgd_accuracy": student_pgd.share}
    if teacher is not None:
        measures |= {"teacher_pgd_accuracy": teacher_pgd.share, "transferability": transferred.share}
        measures["transfer_count"] = int(transferred.count)
    return measures


def _first(loader: Any, count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels, *_ in loader:
        if count is not None:
            images, labels = images[:count], labels[:count]
            count -= len(labels)
        if len(labels):
            yield images, labels


def _logits(network: nn.Module) -> attacks.Score:
    return lambda images: network(images).logits


def corrupted(
    trainer: pl.Trainer, student: Network, data: DataModule, folder: Path, kinds: list[str]
) -> dict[str, Any]:
    """Accuracy under every corruption and severity.

    Args:
        trainer: whose device and precision are used.
        student: to be tested.
        data: of the run.
        folder: a checked one.
        kinds: its corruptions.

    Returns:
        `accuracies`: five for each corruption, by severity; and `summary` of kdbench.evaluation.corruptions.
    """
    accuracies: dict[str, list[float]] = {}
    for each in corruptions.corrupted(folder, kinds):
        answered = answers(trainer, student, data.changed_dataloader(each.images))
        accuracy = (answered.logits.argmax(1) == answered.labels).double().mean().item()
        accuracies.setdefault(each.corruption, []).append(accuracy)
    return {"accuracies": accuracies, "summary": corruptions.summary(accuracies)}

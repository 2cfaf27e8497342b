"""More about finished runs: what is recorded at the end of a run, attacks and corrupted images. Trains nothing.

What is found goes into `evaluation.json` beside the run's `result.json`, which stays as it is.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.table import Table
from torch import Tensor, nn

from kdbench import teachers
from kdbench.console import console, speak
from kdbench.data.module import DataModule
from kdbench.data.streams import derive
from kdbench.distill import data_of
from kdbench.errors import UserError
from kdbench.evaluation import attacks, corruptions
from kdbench.evaluation.assessment import Memory, assess
from kdbench.evaluation.passes import answers
from kdbench.experiment import run_of
from kdbench.files import read_json, write_json
from kdbench.fit import trainer
from kdbench.models.features import Network, evaluating
from kdbench.records import Record, records
from kdbench.run import Identity, Run, versions

log = logging.getLogger("kdbench")


def chosen(words: list[str], outputs: Path) -> list[Record]:
    """Finished runs that are named by directory, by `<name>-<id>` or by id.

    Raises:
        UserError: a word names no run, or one that is not finished.
    """
    known = {key: record for record in records(outputs) for key in (record.id, record.directory.name)}
    found = []
    for word in words:
        directory = Path(word)
        record = Record(directory.absolute()) if (directory / "status.json").exists() else known.get(word)
        if record is None:
            raise UserError(f"{word} is no run: give its directory, or its id below {outputs / 'runs'}")
        if record.result is None:
            raise UserError(f"{word} is {record.state}; only finished runs can be evaluated")
        found.append(record)
    return found


def main(words: list[str], outputs: Path, attack: bool, images: int | None, folder: str | None) -> int:
    """Evaluate runs, write their `evaluation.json`, print the figures; returns the exit code.

    Args:
        words: the runs, as `chosen` takes them.
        outputs: root of the records.
        attack: attack students and teachers, too.
        images: how many test images are attacked, the first ones; None for all.
        folder: of corrupted test images, as CIFAR-10-C; None without.

    Raises:
        UserError: as `chosen`; data or weights that are not those of the run; a folder that is not what it should be.
    """
    if images is not None and images < 1:
        raise UserError(f"--images {images} is not allowed: it must be > 0")
    speak()
    chosen_runs = chosen(words, outputs)
    for record in chosen_runs:
        found = evaluate(record, attack, images, None if folder is None else Path(folder))
        path = record.directory / "evaluation.json"
        write_json(path, {**(read_json(path) or {}), **found, "versions": versions()})
        console.print(_table(record, found))
        log.info("record: %s", path)
    return 0


def evaluate(record: Record, attack: bool, images: int | None, folder: Path | None) -> dict[str, Any]:
    """`test` and `fidelity` as in `result.json`, `noisy` (wrongly labelled images) and, as asked for, the rest.

    Raises:
        UserError: as `main`.
    """
    assert record.result is not None
    cfg = {**record.config, "outputs": str(record.directory.parent.parent)}
    data = data_of(cfg).prepare()
    if data.labels_hash != record.result["labels_hash"]:
        raise UserError(f"{record.directory.name}: dataset={cfg['dataset']['name']} is not what it was trained on")
    if folder is not None:
        kinds = corruptions.check(folder, data.test_labels, (data.image_size, data.image_size, data.in_chans))
    engine = trainer({**cfg["trainer"], "device": "auto"}, 1, record.directory, [])
    device = engine.strategy.root_device
    student = _student(record, cfg).to(device)
    teacher = _teacher(record, cfg)
    teacher = None if teacher is None else teacher.to(device)
    found = assess(engine, student, teacher, data)
    if data.wrong_size:
        found["noisy"] = Memory(engine, teacher, data).shares(student)
    if attack:
        found["attacks"] = attacked(student, teacher, data, device, images)
    if folder is not None:
        found["corruptions"] = corrupted(engine, student, data, folder, kinds)
    return found


def _student(record: Record, cfg: dict[str, Any]) -> Network:
    return teachers.from_run(_run(record), cfg["student"], teachers.sizes_of(cfg["dataset"])).network


def _run(record: Record) -> Run:
    return Run(Identity(record.id, record.name, {}, record.name), record.directory.parent.parent)


def _teacher(record: Record, cfg: dict[str, Any]) -> Network | None:
    """The teacher, from its own run or its file; None, with a line, where it is not there any more."""
    assert record.result is not None
    if not record.result["teacher"]:
        return None
    wanted, sizes = record.result["teacher"]["id"], teachers.sizes_of(cfg["dataset"])
    if cfg["teacher"]["checkpoint"]:
        if Path(cfg["teacher"]["checkpoint"]).exists() and teachers.identity(cfg, run_of) == wanted:
            return teachers.from_file(cfg["teacher"], sizes)
    else:
        for other in records(Path(cfg["outputs"])):
            if other.id == wanted and other.result:
                return teachers.from_run(_run(other), cfg["teacher"], sizes).network
    log.warning("%s: its teacher %s is gone: nothing is compared with it", record.name, wanted)
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
    own, taught, transferred, weak = (attacks.Tally() for _ in range(4))
    seen = 0
    draws = [torch.Generator().manual_seed(derive(0, "attack", who)) for who in ("student", "teacher")]
    target, source = _logits(student), None if teacher is None else _logits(teacher)
    with evaluating(nn.ModuleList([student] if teacher is None else [student, teacher])):
        for pixels, labels in _first(data.test_dataloader(), images):
            pixels, labels = pixels.to(device), labels.to(device)
            seen += len(labels)
            weak += attacks.robust_accuracy(target, attacks.fgsm(target, pixels, labels), labels)
            own += attacks.robust_accuracy(target, attacks.pgd(target, pixels, labels, draws[0]), labels)
            if source is not None:
                aimed = attacks.pgd(source, pixels, labels, draws[1])
                taught += attacks.robust_accuracy(source, aimed, labels)
                transferred += attacks.transferability(source, target, pixels, aimed, labels)
    found: dict[str, Any] = {"eps": attacks.EPS, "steps": attacks.STEPS, "step": attacks.STEP, "images": seen}
    found |= {"fgsm_accuracy": weak.share, "pgd_accuracy": own.share}
    if teacher is not None:
        found |= {"teacher_pgd_accuracy": taught.share, "transferability": transferred.share}
        found["transfer_count"] = int(transferred.count)
    return found


def _first(loader: Any, count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels, _ in loader:
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
        found = answers(trainer, student, data.changed_dataloader(each.images))
        right = (found.logits.argmax(1) == found.labels).double().mean().item()
        accuracies.setdefault(each.corruption, []).append(right)
    return {"accuracies": accuracies, "summary": corruptions.summary(accuracies)}


def _table(record: Record, found: dict[str, Any]) -> Table:
    table = Table(title=record.directory.name, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for part, values in found.items():
        for key, value in (values or {}).items():
            if isinstance(value, int | float):
                table.add_row(f"{part}/{key}", f"{value:.4f}" if isinstance(value, float) else str(value))
        if part == "corruptions" and values["summary"]:
            table.add_row("corruptions/accuracy", f"{values['summary']['accuracy']:.4f}")
    return table

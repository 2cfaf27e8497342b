"""Where a teacher's answers are kept, which of them, and whether keeping them pays."""

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdbench.data.module import DataModule
from kdbench.files import write_json
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.features import Network
from kdbench.records.answer_file import AnswerFile
from kdbench.specs.spec import RunSpec

log = logging.getLogger("kdbench")

_PARTS = ("logits", "embedding")
_WORTHWHILE = 0.05  # share of answers that a run can read, from which teacher.cache=auto keeps them
_NOT_IMAGES = ("val_fraction", "split_seed", "loader")  # facts of a data set on which no image depends


class Place(NamedTuple):
    """Files of one teacher's answers.

    Attributes:
        folder: where they are.
        key: what the answers depend on.
        rows: views of all training images.
        widths: numbers in an answer, by part of the features.
        dtype: of the numbers.
    """

    folder: Path
    key: dict[str, Any]
    rows: int
    widths: dict[str, int]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of the files when they are full."""
        return sum(AnswerFile.size_of(self.rows, width, self.dtype) for width in self.widths.values())

    @property
    def is_new(self) -> bool:
        """Whether none has been kept yet."""
        return not self.folder.exists()

    def open(self) -> dict[str, AnswerFile]:
        """The files, made if they are not there.

        Raises:
            OSError: they cannot be made or opened.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", self.key)
        suffix = {"float32": "f32", "float16": "f16"}[self.dtype]
        return {
            name: AnswerFile(self.folder / f"{name}.{suffix}", self.rows, width, self.dtype)
            for name, width in self.widths.items()
        }


def opened(
    spec: RunSpec, method: DistillationModule, data: DataModule, device: torch.device
) -> dict[str, AnswerFile] | None:
    """The files from which the teacher of a run is to answer; None where it computes. A line says why.

    Args:
        spec: of the run.
        method: attached, with a teacher.
        data: loaded.
        device: of the training.
    """
    place = place_of(spec, method, data, device)
    if place is None:
        return None
    size = _volume(place.size)
    try:
        if why := _reason_against(place, spec):
            log.info("the teacher's answers are not kept: %s; they would take %s", why, size)
            return None
        if place.is_new and spec.config["teacher"]["cache"] == "auto" and _share_read(method, data) < _WORTHWHILE:
            return None
        files = place.open()
        if device.type != "cpu" and not _complete(files, data):
            log.info("the teacher's answers are not read: not all are there; `kdbench cache` computes them")
            return None
    except OSError as error:
        log.warning("the teacher's answers are not kept: %s", error)
        return None
    share = min(file.filled() for file in files.values())
    log.info("the teacher's answers: %s, %.0f %% are there, %s when full", place.folder, 100 * share, size)
    return files


def place_of(spec: RunSpec, method: DistillationModule, data: DataModule, device: torch.device) -> Place | None:
    """Where the answers are that the losses of a run read; None if they read others, or views cannot be counted."""
    reads, teacher = method.teacher_reads(), method.teacher
    if teacher is None or data.views is None or "stages" in reads or not reads & set(_PARTS):
        return None
    shapes = teacher.network.shapes
    widths = dict(zip(_PARTS, (shapes.num_classes, shapes.embedding), strict=True))
    dtype = "float16" if spec.config["teacher"]["cache_rounding"] == "float16" else "float32"
    key = _key(spec, teacher.network, data, device, dtype)
    word = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(spec.config["outputs"]) / "answers" / f"{spec.config['teacher']['name']}-{word}"
    rows = data.source_size * data.views
    return Place(folder, key, rows, {name: widths[name] for name in _PARTS if name in reads}, dtype)


def _key(spec: RunSpec, network: Network, data: DataModule, device: torch.device, dtype: str) -> dict[str, Any]:
    """What the answers depend on, to the last bit."""
    facts: Mapping[str, Any] = spec.identity.facts["dataset"]
    trainer = spec.config["trainer"]
    cuda = device.type == "cuda"
    return {
        "teacher": {"options": network.origin.options, "weights": _hash_of(network)},
        "images": {key: value for key, value in facts.items() if key not in _NOT_IMAGES},
        "views": data.views,
        "dtype": dtype,
        "precision": trainer["precision"],
        "compile": trainer["compile"],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
    }


def _hash_of(network: Network) -> str:
    """SHA-256 of all numbers of a network, its normalisation included."""
    hasher = hashlib.sha256()
    for name, tensor in (*sorted(network.net.state_dict().items()), ("scale", network.scale), ("shift", network.shift)):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _reason_against(place: Place, spec: RunSpec) -> str | None:
    limit = spec.config["teacher"]["cache_gib"]
    if place.size > limit * 2**30:
        return f"teacher.cache_gib={limit:g} allows less"
    if place.is_new:
        existing = next(folder for folder in place.folder.absolute().parents if folder.exists())
        if place.size > (free := shutil.disk_usage(existing).free):
            return f"only {_volume(free)} are free on the disk"
    return None


def _share_read(method: DistillationModule, data: DataModule) -> float:
    """Expected share of the answers that a run alone, with no files yet, can read instead of compute."""
    views, epochs = data.views or 1, method.total_epochs
    different = views * (1 - (1 - 1 / views) ** epochs)  # views of an image that the epochs meet
    return 1 - different / max(1, epochs)


def _complete(files: Mapping[str, AnswerFile], data: DataModule) -> bool:
    """Whether the answers to all views of the training images are there."""
    views = data.views or 1
    return all(
        file.read(views * index + np.arange(views))[1].all() for index in data.train_index for file in files.values()
    )


def _volume(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"

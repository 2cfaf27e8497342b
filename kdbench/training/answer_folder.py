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
from kdbench.data.views import worth_keeping
from kdbench.files import write_json
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.features import Network
from kdbench.records.answer_file import AnswerFile
from kdbench.specs.spec import RunSpec
from kdbench.training.answer_keys import key_of, teacher_id

log = logging.getLogger("kdbench")

_PARTS = ("logits", "embedding")


class Place(NamedTuple):
    """Files of one teacher's answers.

    Attributes:
        folder: where they are.
        key: what the answers depend on.
        teacher_id: of the run that trained the teacher, or of its file.
        rows: views of all training images.
        widths: numbers in an answer, by part of the features.
        dtype: of the numbers.
    """

    folder: Path
    key: dict[str, Any]
    teacher_id: str
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
            write_json(self.folder / "key.json", {**self.key, "teacher_id": self.teacher_id, "rows": self.rows})
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
    size = volume(place.size)
    try:
        if why := exceeded_limit(place, spec) or lacking_space(place):
            log.info("the teacher's answers are not kept: %s; they would take %s", why, size)
            return None
        automatic = spec.config["teacher"]["cache"] == "auto"
        if automatic and place.is_new and not worth_keeping(data.views or 1, method.total_epochs):
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
    key = _key(spec, teacher.network, data, device)
    word = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(spec.config["outputs"]) / "answers" / f"{spec.config['teacher']['name']}-{word}"
    rows = data.source_size * data.views
    parts = {name: widths[name] for name in _PARTS if name in reads}
    return Place(folder, key, teacher_id(spec), rows, parts, key["dtype"])


def _key(spec: RunSpec, network: Network, data: DataModule, device: torch.device) -> dict[str, Any]:
    """What the answers depend on, to the last bit."""
    cuda = device.type == "cuda"
    return {
        "teacher": {"options": network.origin.options, "weights": _hash_of(network)},
        **key_of(spec),
        "views": data.views,
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


def exceeded_limit(place: Place, spec: RunSpec) -> str | None:
    """The limit of `teacher.cache_gib` if the full files would exceed it."""
    limit = spec.config["teacher"]["cache_gib"]
    return f"teacher.cache_gib={limit:g} allows less" if place.size > limit * 2**30 else None


def lacking_space(place: Place) -> str | None:
    """The free space of the disk if new files would need more."""
    if place.is_new:
        existing = next(folder for folder in place.folder.absolute().parents if folder.exists())
        if place.size > (free := shutil.disk_usage(existing).free):
            return f"only {volume(free)} are free on the disk"
    return None


def _complete(files: Mapping[str, AnswerFile], data: DataModule) -> bool:
    """Whether the answers to all views of the training images are there."""
    views = data.views or 1
    return all(
        file.read(views * index + np.arange(views))[1].all() for index in data.train_index for file in files.values()
    )


def volume(size: float) -> str:
    """Bytes in a readable unit."""
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"

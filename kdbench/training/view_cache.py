"""A teacher's answers to the views of the training images: kept in files, and read again instead of computed.

A crop with padding 4 and a flip makes 162 views of an image, and a frozen network in eval mode answers each image by
itself. What it has answered in one epoch, run or seed, or for one method, holds for all others. By default answers are
used only where they are exact: the first batch of a run is computed, and compared with what is kept and with its own
images in other company; where they differ, the run computes all answers.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.data.module import DataModule
from kdbench.methods.machinery.frozen import Teacher
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.features import Features
from kdbench.records.answer_file import AnswerFile
from kdbench.specs.spec import RunSpec
from kdbench.training import answer_folder

log = logging.getLogger("kdbench")

_GROUP = 32  # images in a forward pass for the missing answers of a batch: only sizes that have been compared


class ViewCache:
    """Answers to training batches: read where they are kept, else computed.

    Args:
        teacher: the network.
        parts: of the features that are kept.
        exact: whether answers are read only if they equal computed ones bit by bit.

    Attributes:
        parts: of the features that are kept.
        asked, read: number of images whose answers were asked for, and of those that were read.
        trusted: whether answers are read; False once a comparison has failed.
    """

    def __init__(self, teacher: Teacher, parts: Iterable[str], exact: bool) -> None:
        self.teacher, self.parts = teacher, frozenset(parts)
        self.asked = self.read = 0
        self.trusted = True
        self._compared = not exact

    def __call__(self, batch: Batch) -> Features:
        """Features of the teacher; parts that are not kept are empty, unless they had to be computed."""
        if batch.views is None or not self.trusted:
            return self.teacher.compute(batch)
        self.asked += len(batch.images)
        if not self._compared:
            self._compared = True
            features = self.teacher.compute(batch)
            if difference := self.compare(batch, features):
                log.warning("the teacher's answers are computed, not read: on this machine %s", difference)
                self.trusted = False
            return features
        answers = self.answers(batch)
        nothing = batch.images.new_empty(len(batch.images), 0)
        return Features([], answers.get("embedding", nothing), answers.get("logits", nothing))

    def answers(self, batch: Batch) -> Mapping[str, Tensor]:
        """The kept parts of the features, float32."""
        raise NotImplementedError

    def compare(self, batch: Batch, features: Features) -> str | None:
        """How computed features of a batch differ from other answers to the same images; None if they do not."""
        raise NotImplementedError


class AnswersInFiles(ViewCache):
    """Reads files, which it fills with what it computes.

    Args:
        teacher: the network, on the CPU.
        files: by part of the features: `logits`, `embedding`.
        exact: as for `ViewCache`.
        group: images in a forward pass for missing answers; None to compute whole batches.
    """

    def __init__(self, teacher: Teacher, files: Mapping[str, AnswerFile], exact: bool, group: int | None) -> None:
        super().__init__(teacher, files, exact)
        self.files, self.group = files, group
        self._writes = True

    def answers(self, batch: Batch) -> Mapping[str, Tensor]:
        """The kept parts of the features."""
        assert batch.views is not None
        views = batch.views.numpy()
        kept, there = self._read(views)
        self.read += int(there.sum())
        missing = np.flatnonzero(~there)
        if len(missing):
            computed = self._compute(batch.images, missing)
            for name, values in computed.items():
                kept[name][missing] = values
            self._write(views[missing], computed)
        return {name: torch.from_numpy(values).float() for name, values in kept.items()}

    def compare(self, batch: Batch, features: Features) -> str | None:
        """Compare with the same images in another order and number, and with what is kept; then keep the answers."""
        assert batch.views is not None
        views = batch.views.cpu().numpy()
        computed = self.stored_form(features)
        order = np.random.default_rng(0).permutation(len(views))[: self.group]
        regrouped = self.stored_form(self.teacher(_selected(batch.images, order)))
        kept, there = self._read(views)
        for name, values in computed.items():
            if not np.array_equal(regrouped[name], values[order], equal_nan=True):
                return "they depend, by rounding, on the other images of a batch"
            if not np.array_equal(kept[name][there], values[there], equal_nan=True):
                return f"they differ from those in {self.files[name].path}"
        self._write(views[~there], {name: values[~there] for name, values in computed.items()})
        return None

    def _read(self, views: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The kept parts, and for which images all of them are there."""
        parts = {name: file.read(views) for name, file in self.files.items()}
        there = np.logical_and.reduce([valid for _, valid in parts.values()])
        return {name: values for name, (values, _) in parts.items()}, there

    def _write(self, views: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
        try:
            for name, file in self.files.items():
                if self._writes:
                    file.write(views, answers[name])
        except OSError as error:
            self._writes = False
            log.warning("no more of the teacher's answers are kept: %s: %s", file.path, error.strerror or error)

    def _compute(self, images: Tensor, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """The answers to some images of a batch, in groups that other images of the batch fill up."""
        count = len(images)
        if self.group is None or len(wanted) + self.group > count:
            computed = self.stored_form(self.teacher(images))
            return {name: values[wanted] for name, values in computed.items()}
        others = np.setdiff1d(np.arange(count), wanted)
        parts = []
        for start in range(0, len(wanted), self.group):
            chosen = wanted[start : start + self.group]
            group = np.concatenate([chosen, others[: self.group - len(chosen)]])
            computed = self.stored_form(self.teacher(_selected(images, group)))
            parts.append({name: values[: len(chosen)] for name, values in computed.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.files}

    def stored_form(self, features: Features) -> dict[str, np.ndarray]:
        """The kept parts of features, as they are in the files."""
        parts = {name: getattr(features, name).float().cpu().numpy() for name in self.files}
        return {name: values.astype(self.files[name].dtype) for name, values in parts.items()}


class AnswersOnDevice(ViewCache):
    """Has all answers on the training device: one gather for each batch, without a host sync.

    Args:
        teacher: the network.
        tables: (views of all training images, width), by part of the features.
        exact: as for `ViewCache`.
    """

    def __init__(self, teacher: Teacher, tables: Mapping[str, Tensor], exact: bool) -> None:
        super().__init__(teacher, tables, exact)
        self.tables = tables

    def answers(self, batch: Batch) -> Mapping[str, Tensor]:
        """The kept parts of the features."""
        self.read += len(batch.images)
        return self._kept(batch)

    def compare(self, batch: Batch, features: Features) -> str | None:
        """Compare with what is kept."""
        for name, kept in self._kept(batch).items():
            if not torch.equal(getattr(features, name).float(), kept):
                return "they depend, by rounding, on the other images of a batch"
        return None

    def _kept(self, batch: Batch) -> dict[str, Tensor]:
        return {name: table[batch.views].float() for name, table in self.tables.items()}


def _selected(images: Tensor, positions: np.ndarray) -> Tensor:
    return images[torch.from_numpy(positions)].contiguous(memory_format=torch.channels_last)


def _rounded(teacher: Teacher, batch: Batch) -> Features:
    """Computed features, as precise as those that are kept in float16."""
    stages, embedding, logits = teacher.compute(batch)
    return Features(stages, embedding.half().float(), logits.half().float())


def start(spec: RunSpec, method: DistillationModule, data: DataModule, device: torch.device) -> ViewCache | None:
    """Let a method's teacher answer from files, if the run is to do so.

    Args:
        spec: of the run.
        method: attached.
        data: loaded.
        device: of the training.

    Returns:
        What now answers for the teacher; None if it computes all answers.
    """
    teacher, options = method.teacher, spec.config["teacher"]
    if teacher is None or options["cache"] == "never":
        return None
    exact = options["cache_rounding"] == "exact"
    files = answer_folder.opened(spec, method, data, device)
    if not files:
        if options["cache_rounding"] == "float16":  # the result must not depend on where an answer comes from
            teacher.answers = partial(_rounded, teacher)
        return None
    cache: ViewCache
    if device.type == "cpu":
        cache = AnswersInFiles(teacher, files, exact, None if spec.config["trainer"]["compile"] else _GROUP)
    else:
        tables = {name: torch.from_numpy(file.everything()).to(device) for name, file in files.items()}
        cache = AnswersOnDevice(teacher, tables, exact)
    teacher.answers = cache
    return cache

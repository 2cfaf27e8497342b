"""What runs that are trained together share: their turns, the teacher's answers to a batch, the data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.data.module import DataModule
from kdbench.methods.machinery.module import DistillationModule
from kdbench.models.features import Features
from kdbench.training.lockstep import Member

_EVERYTHING = frozenset({"stages", "embedding", "logits"})


class Turns(pl.Callback):
    """Waits for the member's turn before every batch."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let those go first that are further behind."""
        self.member.turn((trainer.current_epoch, batch_idx))


class _Answer(NamedTuple):
    images: Tensor
    features: Features


class SharedAnswers:
    """Answers of the teacher to training batches: those of another member to the same batch, if it has the parts.

    Args:
        member: of the group.
        answers: the teacher's own, computed or read from files.
        kept: the parts of the features that are read from files; None if all are computed.
        reads: what the losses of this run read.
        exact: whether computed and kept answers are the same.
    """

    def __init__(
        self,
        member: Member,
        answers: Callable[[Batch], Features],
        kept: frozenset[str] | None,
        reads: set[str],
        exact: bool,
    ) -> None:
        self.member, self.answers, self.exact = member, answers, exact
        self.kept, self.needed = kept, frozenset(reads & _EVERYTHING)

    def __call__(self, batch: Batch) -> Features:
        """Features of the teacher, with at least the parts that are read."""
        shared: dict[frozenset[str], _Answer] = self.member.group.shared
        for parts, answer in shared.items():
            same_source = self.exact or (parts == _EVERYTHING) == (self.kept is None)
            if self.needed <= parts and same_source:
                if batch.images.device.type == "cpu" and not torch.equal(batch.images, answer.images):
                    raise RuntimeError("runs that are trained together see different batches")
                return answer.features
        features = self.answers(batch)
        shared[_EVERYTHING if features.stages or self.kept is None else self.kept] = _Answer(batch.images, features)
        return features


def join(method: DistillationModule, kept: frozenset[str] | None, member: Member, exact: bool) -> None:
    """Let a run share its teacher's answers.

    Args:
        method: of the run, with a teacher that answers as it would alone.
        kept: as for `SharedAnswers`.
        member: of the group.
        exact: as for `SharedAnswers`.
    """
    assert method.teacher is not None
    reads = method.teacher_reads()
    member.rank = 0 if "stages" in reads else 1  # those that need a whole forward pass go first: it serves the others
    method.teacher.answers = SharedAnswers(member, method.teacher.answers, kept, reads, exact)


def data_for(member: Member, load: Callable[[], DataModule]) -> DataModule:
    """The data of the group, loaded once, for one more run.

    Args:
        member: of the group.
        load: loads them.
    """
    common = member.group.common
    if "data" not in common:
        common["data"] = load()
    data: DataModule = common["data"]
    return data.twin()

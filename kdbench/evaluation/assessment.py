"""What is recorded of a trained student: on the test set, against its teacher, on wrongly labelled training images."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from kdbench.data.module import DataModule
from kdbench.evaluation import fidelity
from kdbench.evaluation.calibration import calibration, fitted_temperature
from kdbench.evaluation.classification import Classification
from kdbench.evaluation.groups import groups
from kdbench.evaluation.memorisation import shares
from kdbench.evaluation.passes import Answers, answers


def assess(trainer: pl.Trainer, student: nn.Module, teacher: nn.Module | None, data: DataModule) -> dict[str, Any]:
    """Look at the test set with a student and its teacher; the temperature is fitted on the validation set.

    Args:
        trainer: whose device and precision are used.
        student: gives `Features`, as the next.
        teacher: None without one.
        data: of the run.

    Returns:
        `test`: `accuracy`, `top5`, `calibration` and `groups` (functions of those names). `fidelity`: `agreement`, `kl`
        (nats) and `cka` of the embeddings; None without a teacher.
    """
    found = answers(trainer, student, data.test_dataloader())
    held = answers(trainer, student, data.val_dataloader()) if data.val_size else None
    temperature = None if held is None else fitted_temperature(held.logits, held.labels)
    counts = np.array(data.noise_record["true_class_counts"])
    top = Classification(len(counts))
    top.update(found.logits, found.labels)
    test = {
        **top.compute(),
        **calibration(found.logits, found.labels, temperature),
        **groups(found.logits.argmax(1), found.labels, counts),
    }
    taught = None if teacher is None else answers(trainer, teacher, data.test_dataloader())
    return {"test": test, "fidelity": taught and compare(found, taught)}


def compare(student: Answers, teacher: Answers) -> dict[str, float | None]:
    """`agreement`, `kl` (nats) and `cka` of student and teacher on the same images."""
    return {
        "agreement": fidelity.agreement(student.logits, teacher.logits),
        "kl": fidelity.kl(student.logits, teacher.logits),
        "cka": fidelity.cka(student.embeddings, teacher.embeddings),
    }


class Memory:
    """Which labels a student has learned of the training images whose label is wrong.

    Args:
        trainer: whose device and precision are used.
        teacher: gives `Features`; None without one.
        data: of the run.
    """

    def __init__(self, trainer: pl.Trainer, teacher: nn.Module | None, data: DataModule) -> None:
        self.trainer, self.loader = trainer, data.wrong_dataloader()
        self.true = torch.from_numpy(data.wrong_true)
        self.taught = answers(trainer, teacher, self.loader).logits.argmax(1) if teacher and data.wrong_size else None

    def shares(self, student: nn.Module) -> dict[str, float]:
        """`shares` of kdbench.evaluation.memorisation; nothing where no label is wrong."""
        if not len(self.true):
            return {}
        found = answers(self.trainer, student, self.loader)
        return shares(found.logits.argmax(1), found.labels, self.true, self.taught)

"""The evaluation that is recorded of a student: on the test set, against its teacher and on wrongly labelled images."""

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
    """Evaluate a student on the test set and compare it with its teacher.

    The temperature is fitted on the validation set.

    Args:
        trainer: its device and precision are used.
        student: returns `Features`.
        teacher: returns `Features`; None if there is no teacher.
        data: the data of the run.

    Returns:
        `test`: `accuracy`, `top5` and the measures of `calibration` and `groups`; `fidelity`: `agreement`, `kl` (nats)
        and `cka` of the embeddings, or None without a teacher.
    """
    on_test = answers(trainer, student, data.test_dataloader())
    temperature = None
    if data.val_size:
        on_validation = answers(trainer, student, data.val_dataloader())
        temperature = fitted_temperature(on_validation.logits, on_validation.labels)
    class_counts = np.array(data.noise_record["true_class_counts"])
    classification = Classification(len(class_counts))
    classification.update(on_test.logits, on_test.labels)
    test = {
        **classification.compute(),
        **calibration(on_test.logits, on_test.labels, temperature),  # replaces `nll` by the same in float64
        **groups(on_test.logits.argmax(1), on_test.labels, class_counts),
    }
    if teacher is None:
        return {"test": test, "fidelity": None}
    return {"test": test, "fidelity": _fidelity(on_test, answers(trainer, teacher, data.test_dataloader()))}


def _fidelity(student: Answers, teacher: Answers) -> dict[str, float | None]:
    return {
        "agreement": fidelity.agreement(student.logits, teacher.logits),
        "kl": fidelity.kl(student.logits, teacher.logits),
        "cka": fidelity.cka(student.embeddings, teacher.embeddings),
    }


class Memorisation:
    """Which labels a student predicts for the wrongly labelled training images.

    Args:
        trainer: its device and precision are used.
        teacher: returns `Features`; None if there is no teacher.
        data: the data of the run.
    """

    def __init__(self, trainer: pl.Trainer, teacher: nn.Module | None, data: DataModule) -> None:
        self.trainer, self.loader = trainer, data.wrong_dataloader()
        self.true_labels = torch.from_numpy(data.wrong_true)
        self.teacher_predictions = None
        if teacher is not None and data.wrong_size:
            self.teacher_predictions = answers(trainer, teacher, self.loader).logits.argmax(1)

    def shares(self, student: nn.Module) -> dict[str, float]:
        """`kdbench.evaluation.memorisation.shares` of the student's predictions; empty if no label is wrong."""
        if not len(self.true_labels):
            return {}
        student_answers = answers(self.trainer, student, self.loader)
        predictions = student_answers.logits.argmax(1)
        return shares(predictions, student_answers.labels, self.true_labels, self.teacher_predictions)

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.batch import Batch
from kdbench.evaluation.assessment import Memorisation, assess
from kdbench.evaluation.passes import answers
from kdbench.models.features import Features
from kdbench.training.trainer import make_trainer

OPTIONS = {"device": "cpu", "precision": "32-true", "max_batches": None}


class Table(nn.Module):
    """A network that looks up its logits in a table: the pixels of image i have the value i."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        logits = self.logits[images[:, 0, 0, 0].long()]
        return Features([], logits[:, :2], logits)


def batches(labels, size=2):
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1)
    labels = torch.tensor(labels)
    index = torch.arange(len(labels))
    return [Batch(images[i : i + size], labels[i : i + size], index[i : i + size]) for i in range(0, len(labels), size)]


def data_of(test, val=(), wrong=(), true=(), counts=(200, 50, 5)):
    return SimpleNamespace(
        test_dataloader=lambda: batches(test),
        val_dataloader=lambda: batches(val),
        wrong_dataloader=lambda: batches(wrong),
        val_size=len(val),
        wrong_size=len(wrong),
        wrong_true=np.array(true, np.int64),
        noise_record={"true_class_counts": list(counts)},
    )


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(OPTIONS, 1, tmp_path, [])


def test_answers_are_in_order_and_the_mode_is_restored(trainer):
    table = Table([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]).train()
    outputs = answers(trainer, table, batches([2, 1, 0]))
    assert outputs.logits.tolist() == table.logits.tolist()
    assert outputs.embeddings.tolist() == table.logits[:, :2].tolist()
    assert outputs.labels.tolist() == [2, 1, 0]
    assert table.modes == [False, False]
    assert table.training


def test_accuracies_by_class_and_group_and_calibration_on_the_test_set(trainer):
    # images 0 to 3: correct for class 0, wrong for class 1, correct for class 2, correct for class 2
    student = Table([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0]])
    assessment = assess(trainer, student, None, data_of([0, 1, 2, 2]))
    test = assessment["test"]
    assert assessment["fidelity"] is None
    assert (test["accuracy"], test["top5"]) == (0.75, 1.0)
    assert test["per_class"] == [1.0, 0.0, 1.0]
    assert test["balanced_accuracy"] == pytest.approx(2 / 3)
    assert (test["many"], test["medium"], test["few"]) == (1.0, 0.0, 1.0)
    norm = math.exp(2) + 2
    confidence, other = math.exp(2) / norm, 1 / norm
    assert test["nll"] == pytest.approx(-(3 * math.log(confidence) + math.log(other)) / 4)
    assert test["ece15"] == pytest.approx(abs(confidence - 0.75))
    assert "temperature" not in test


def test_the_temperature_is_fitted_on_the_validation_set(trainer):
    student = Table([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    # three of four are correct: softmax(2 / T) = 3 / 4 at T = 2 / log 3
    test = assess(trainer, student, None, data_of([1, 1, 1, 1], val=[0, 0, 0, 1], counts=(9, 9)))["test"]
    assert test["temperature"] == pytest.approx(2 / math.log(3))
    assert test["scaled_ece15"] == pytest.approx(0.75)


def test_fidelity_to_the_teacher_on_the_test_set(trainer):
    student, teacher = Table([[1.0, 0.0], [0.0, 1.0]]), Table([[3.0, 0.0], [3.0, 0.0]])
    fidelity = assess(trainer, student, teacher, data_of([0, 0], counts=(9, 9)))["fidelity"]
    assert fidelity["agreement"] == 0.5
    assert fidelity["cka"] is None  # the teacher's embedding is constant
    p, q = torch.tensor([3.0, 0.0]).softmax(0), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).softmax(1)
    expected = sum(float((p * (p / row).log()).sum()) for row in q) / 2
    assert fidelity["kl"] == pytest.approx(expected, rel=1e-6)


def test_memorisation_of_wrong_labels_true_labels_and_teacher_predictions(trainer):
    data = data_of([0], wrong=[1, 1, 1, 1], true=[0, 0, 0, 2])
    student = Table([[0.0, 9, 0], [9.0, 0, 0], [0.0, 0, 9], [0.0, 0, 9]])
    teacher = Table([[0.0, 9, 0], [0.0, 9, 0], [0.0, 0, 9], [9.0, 0, 0]])
    assert Memorisation(trainer, None, data).shares(student) == {"wrong": 0.25, "true": 0.5}
    assert Memorisation(trainer, teacher, data).shares(student) == {"wrong": 0.25, "true": 0.5, "teacher": 0.5}
    assert Memorisation(trainer, teacher, data_of([0])).shares(student) == {}

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.batch import Batch
from kdbench.evaluation.assessment import Memory, assess
from kdbench.evaluation.passes import answers
from kdbench.training.callbacks import trainer
from kdbench.models.features import Features

OPTIONS = {"device": "cpu", "precision": "32-true", "max_batches": None}


class Table(nn.Module):
    """Answers that are listed: image i shows the number i."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        found = self.logits[images[:, 0, 0, 0].long()]
        return Features([], found[:, :2], found)


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
def engine(tmp_path):
    return trainer(OPTIONS, 1, tmp_path, [])


def test_answers_are_in_order_and_the_mode_is_restored(engine):
    table = Table([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]).train()
    found = answers(engine, table, batches([2, 1, 0]))
    assert found.logits.tolist() == table.logits.tolist()
    assert found.embeddings.tolist() == table.logits[:, :2].tolist()
    assert found.labels.tolist() == [2, 1, 0]
    assert table.modes == [False, False]
    assert table.training


def test_a_test_set_is_assessed_by_class_by_group_and_in_calibration(engine):
    # images 0 to 3: right for class 0, wrong for class 1, right for class 2, right for class 2
    student = Table([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0]])
    found = assess(engine, student, None, data_of([0, 1, 2, 2]))
    test = found["test"]
    assert found["fidelity"] is None
    assert (test["accuracy"], test["top5"]) == (0.75, 1.0)
    assert test["per_class"] == [1.0, 0.0, 1.0]
    assert test["balanced_accuracy"] == pytest.approx(2 / 3)
    assert (test["many"], test["medium"], test["few"]) == (1.0, 0.0, 1.0)
    norm = math.exp(2) + 2
    sure, other = math.exp(2) / norm, 1 / norm
    assert test["nll"] == pytest.approx(-(3 * math.log(sure) + math.log(other)) / 4)
    assert test["ece15"] == pytest.approx(abs(sure - 0.75))
    assert "temperature" not in test


def test_the_temperature_comes_from_the_validation_set(engine):
    student = Table([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    # three of four are right: softmax(2 / T) = 3 / 4 at T = 2 / log 3
    found = assess(engine, student, None, data_of([1, 1, 1, 1], val=[0, 0, 0, 1], counts=(9, 9)))
    assert found["test"]["temperature"] == pytest.approx(2 / math.log(3))
    assert found["test"]["scaled_ece15"] == pytest.approx(0.75)


def test_fidelity_compares_with_the_teacher_on_the_test_set(engine):
    student, teacher = Table([[1.0, 0.0], [0.0, 1.0]]), Table([[3.0, 0.0], [3.0, 0.0]])
    found = assess(engine, student, teacher, data_of([0, 0], counts=(9, 9)))["fidelity"]
    assert found["agreement"] == 0.5
    assert found["cka"] is None  # the teacher's embedding is constant
    p, q = torch.tensor([3.0, 0.0]).softmax(0), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).softmax(1)
    wanted = sum(float((p * (p / each).log()).sum()) for each in q) / 2
    assert found["kl"] == pytest.approx(wanted, rel=1e-6)


def test_memory_tells_wrong_true_and_taught_labels_apart(engine):
    data = data_of([0], wrong=[1, 1, 1, 1], true=[0, 0, 0, 2])
    student = Table([[0.0, 9, 0], [9.0, 0, 0], [0.0, 0, 9], [0.0, 0, 9]])
    teacher = Table([[0.0, 9, 0], [0.0, 9, 0], [0.0, 0, 9], [9.0, 0, 0]])
    assert Memory(engine, None, data).shares(student) == {"wrong": 0.25, "true": 0.5}
    assert Memory(engine, teacher, data).shares(student) == {"wrong": 0.25, "true": 0.5, "teacher": 0.5}
    assert Memory(engine, teacher, data_of([0])).shares(student) == {}

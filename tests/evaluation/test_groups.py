import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from kdbench.data import imbalance
from kdbench.evaluation.groups import balanced_accuracy, by_shots, groups, per_class

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 4, 4, 4])
PREDICTIONS = torch.tensor([0, 0, 0, 1, 1, 3, 0, 4, 4, 2])
ACCURACIES = [0.75, 0.5, 0.0, None, pytest.approx(2 / 3)]


def test_per_class_is_none_for_a_class_without_test_images():
    assert per_class(PREDICTIONS, LABELS, 5) == ACCURACIES


def test_per_class_and_balanced_accuracy_agree_with_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(6, (500,), generator=generator)
    predictions = torch.where(torch.rand(500, generator=generator) < 0.4, labels, (labels * 5 + 1) % 6)
    accuracies = per_class(predictions, labels, 6)
    assert accuracies == pytest.approx(multiclass_accuracy(predictions, labels, 6, average=None).tolist(), abs=1e-6)
    macro = multiclass_accuracy(predictions, labels, 6, average="macro").item()
    assert balanced_accuracy(accuracies) == pytest.approx(macro, abs=1e-6)


def test_balanced_accuracy_is_over_the_classes_that_occur():
    assert balanced_accuracy([0.75, 0.5, 0.0, None, 0.25]) == 0.375


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([500, 101, 100, 20, 19], {"many": 0.75, "medium": 0.375, "few": 0.125}),
        ([500, 500, 500, 500, 500], {"many": 0.475, "medium": None, "few": None}),
        ([100, 20, 19, 1, 0], {"many": None, "medium": 0.75, "few": 0.875 / 3}),
    ],
)
def test_many_medium_and_few(counts, expected):
    assert by_shots([1.0, 0.5, 0.5, 0.25, 0.125], np.array(counts)) == pytest.approx(expected)


def test_a_group_without_test_images_is_none():
    assert by_shots([0.5, None], np.array([500, 5])) == {"many": 0.5, "medium": None, "few": None}


def test_groups_are_those_counted_in_the_record_of_the_data():
    counts = np.array([1000, 101, 100, 60, 20, 19, 0])
    masks = imbalance.shot_groups(counts)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "many": [True, True, False, False, False, False, False],
        "medium": [False, False, True, True, True, False, False],
        "few": [False, False, False, False, False, True, True],
    }
    assert imbalance.shots(counts) == {"many": 2, "medium": 3, "few": 2}


def test_groups_of_a_test_set():
    assert groups(PREDICTIONS, LABELS, np.array([300, 200, 50, 30, 5])) == {
        "balanced_accuracy": pytest.approx((0.75 + 0.5 + 0 + 2 / 3) / 4),
        "per_class": ACCURACIES,
        "many": 0.625,
        "medium": 0.0,
        "few": pytest.approx(2 / 3),
    }

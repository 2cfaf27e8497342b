"""LW-KD's bank of soft targets: which rows it keeps, and which row a sample gets."""

from collections import Counter

import pytest
import torch

from kdbench.methods.lwkd import Bank
from tests.helpers.numeric import random

LOGITS, LABELS = random(1, 9, 4), torch.tensor([2, 0, 1, 0, 2, 2, 1, 3, 2])


def bank():
    return Bank(LOGITS, LABELS)


def rows(drawn):
    """The number of each drawn row in LOGITS."""
    matches = (drawn[:, None] == LOGITS[None]).all(2)
    assert (matches.sum(1) == 1).all()
    return matches.long().argmax(1)


@pytest.mark.parametrize("pairing", ["resampled", "fixed"])
def test_draws_all_rows_of_the_same_label(pairing):
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    drawn = rows(bank().draw(labels, torch.randperm(400), pairing))
    assert torch.equal(LABELS[drawn], labels)
    assert sorted(set(drawn.tolist())) == list(range(9))


def test_resampled_is_uniform_within_the_class_and_differs_each_time():
    torch.manual_seed(0)
    labels, index = torch.full((4000,), 2), torch.arange(4000)
    first, second = (rows(bank().draw(labels, index, "resampled")) for _ in range(2))
    assert not torch.equal(first, second)
    counts = Counter(first.tolist())
    assert sorted(counts) == [0, 4, 5, 8]
    assert all(850 < count < 1150 for count in counts.values())  # 1000 +- 27
    torch.manual_seed(0)
    assert torch.equal(rows(bank().draw(labels, index, "resampled")), first)


def test_fixed_draws_every_row_where_the_labels_repeat_with_the_index():
    # index = label mod K: the row must not depend on the remainder of the index alone
    index = torch.arange(2000)
    drawn = rows(bank().draw(index % 4, index, "fixed"))
    counts = Counter(drawn[index % 4 == 2].tolist())
    assert sorted(counts) == [0, 4, 5, 8]
    assert all(75 < count < 175 for count in counts.values())  # 125 of 500


def test_fixed_depends_on_the_sample_alone():
    labels, index = torch.arange(40) % 4, torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    drawn = bank().draw(labels, index, "fixed")
    torch.manual_seed(1)
    order = torch.randperm(40)
    assert torch.equal(bank().draw(labels[order], index[order], "fixed"), drawn[order])
    assert torch.equal(bank().draw(labels[3:5], index[3:5], "fixed"), drawn[3:5])


@pytest.mark.parametrize("pairing", ["resampled", "fixed"])
def test_drawing_needs_no_values(pairing):
    labels = torch.zeros(5, dtype=torch.long, device="meta")
    drawn = bank().to("meta").draw(labels, torch.zeros_like(labels), pairing)
    assert (drawn.device.type, drawn.shape) == ("meta", (5, 4))


def test_has_no_parameters():
    assert not list(bank().parameters())


def reachable(bank, label):
    """The different rows that a bank has for a label, sorted."""
    torch.manual_seed(0)
    drawn = bank.draw(torch.full((500,), label), torch.arange(500), "resampled")
    return sorted(set(map(tuple, drawn.tolist())))


# two outputs for each class, of which one is correct for class 0, both for class 1, and none for class 2
OUTPUTS = torch.tensor([[3, 1, 0], [1, 2, 0], [0, 5, 1], [0, 1, 0], [4, 1, 0], [0, 1, 0.5]], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("targets", "correct_only", "expected"),
    [
        ("instance", False, [[(1, 2, 0), (3, 1, 0)], [(0, 1, 0), (0, 5, 1)], [(0, 1, 0.5), (4, 1, 0)]]),
        ("instance", True, [[(3, 1, 0)], [(0, 1, 0), (0, 5, 1)], [(0, 1, 0.5), (4, 1, 0)]]),
        ("class_mean", False, [[(2, 1.5, 0)], [(0, 3, 0.5)], [(2, 1, 0.25)]]),
        ("class_mean", True, [[(3, 1, 0)], [(0, 3, 0.5)], [(2, 1, 0.25)]]),
    ],
)
def test_bank_of_instances_or_classes_all_or_correct(targets, correct_only, expected):
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    bank = Bank.of(OUTPUTS[order], CLASSES[order], targets, correct_only)
    assert [reachable(bank, label) for label in range(3)] == expected

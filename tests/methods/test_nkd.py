"""NKD against the formula of Yang et al. (2023), written out literally in float64."""

import math

import pytest
import torch

from kdbench.data.batch import Batch, Mixed
from kdbench.methods.nkd import NKD, other_loss, target_loss
from kdbench.models.features import Features
from tests.helpers.numeric import numeric_gradient, random, softmax

LABELS = torch.tensor([0, 1, 2, 3, 4, 4])


def literal_target(student, teacher, labels):
    """- 1/B sum_i t_i,y log s_i,y, without a temperature."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        total -= softmax(t)[y] * math.log(softmax(s)[y])
    return total / len(labels)


def literal_other(student, teacher, labels, temperature):
    """- T^2/B sum_i sum_{k != y} t~_ik log s~_ik, with the softened probabilities divided by their sum without y."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(s, temperature), softmax(t, temperature)
        for k in range(len(p)):
            if k != y:
                total -= q[k] / (1 - q[y]) * math.log(p[k] / (1 - p[y]))
    return temperature**2 * total / len(labels)


def features(logits):
    return Features([], logits, logits)


def batch(labels, mixed=None):
    return Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)), mixed)


@pytest.fixture
def logits():
    return 3 * random(100, 6, 5), 3 * random(101, 6, 5)


def check(function, expected, student):
    leaf = student.clone().requires_grad_()
    loss = function(leaf)
    assert loss.item() == pytest.approx(expected(student), rel=1e-12)
    loss.backward()
    gradient = numeric_gradient(expected, student)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item())


def test_value_and_gradient_of_the_target(logits):
    student, teacher = logits
    check(lambda x: target_loss(x, teacher, LABELS), lambda x: literal_target(x, teacher, LABELS), student)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_of_the_others(logits, temperature):
    student, teacher = logits
    check(
        lambda x: other_loss(x, teacher, LABELS, temperature),
        lambda x: literal_other(x, teacher, LABELS, temperature),
        student,
    )


def test_the_weight_is_of_the_others_alone_and_the_cross_entropy_is_whole(logits):
    student, teacher = logits
    method = NKD(temperature=3.0, gamma=3.5)
    losses = method.losses(features(student), features(teacher), batch(LABELS))
    assert losses["target"].item() == pytest.approx(literal_target(student, teacher, LABELS), rel=1e-12)
    assert losses["other"].item() == pytest.approx(3.5 * literal_other(student, teacher, LABELS, 3.0), rel=1e-12)
    assert method.label_weight == 1


def test_the_others_do_not_depend_on_the_logit_of_the_label(logits):
    student, teacher = logits
    expected = other_loss(student, teacher, LABELS, 3.0).item()
    moved = student.scatter_add(1, LABELS[:, None], torch.full((6, 1), 7.0, dtype=torch.float64))
    assert other_loss(moved, teacher, LABELS, 3.0).item() == pytest.approx(expected, rel=1e-12)


def test_two_labels_count_with_their_shares(logits):
    student, teacher = logits
    partners = (LABELS + 1) % 5
    method = NKD(temperature=3.0, gamma=3.5)
    mixed = method.losses(features(student), features(teacher), batch(LABELS, Mixed(partners, torch.tensor(0.3))))
    for key, expected in {
        "target": [literal_target(student, teacher, labels) for labels in (LABELS, partners)],
        "other": [3.5 * literal_other(student, teacher, labels, 3.0) for labels in (LABELS, partners)],
    }.items():
        assert mixed[key].item() == pytest.approx(0.3 * expected[0] + 0.7 * expected[1], rel=1e-6)


def test_of_two_classes_the_other_is_certain():
    student, teacher = random(102, 6, 2).requires_grad_(), random(103, 6, 2)
    loss = other_loss(student, teacher, LABELS % 2, 3.0)
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, 6e4]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        labels = torch.tensor([1, 0])
        loss = target_loss(student, teacher, labels) + other_loss(student, teacher, labels, 1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

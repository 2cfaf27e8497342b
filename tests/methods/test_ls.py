"""Label smoothing in both forms, written out literally in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.ls import smoothing_loss
from kdbench.models.features import Features
from tests.helpers.methods import Toy, method_of
from tests.helpers.numeric import random

LABELS = torch.tensor([0, 4, 2, 2, 1, 0])


def weights(label, classes, epsilon, exclude_label):
    """w_k: epsilon / (K - 1) for k != y and 0 for y, or epsilon / K for all k."""
    if exclude_label:
        return [0.0 if k == label else epsilon / (classes - 1) for k in range(classes)]
    return [epsilon / classes] * classes


def literal(logits, labels, epsilon, exclude_label):
    """1 / B * sum_i sum_k w_ik * -log p_ik."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z) for z in row))
        w = weights(label, len(row), epsilon, exclude_label)
        total += sum(wk * (log_sum - z) for wk, z in zip(w, row, strict=True))
    return total / len(logits)


def literal_gradient(logits, labels, epsilon, exclude_label):
    """d/dz_ik = (epsilon p_ik - w_ik) / B, as sum_k w_ik = epsilon."""
    classes = logits.shape[1]
    w = torch.tensor([weights(y, classes, epsilon, exclude_label) for y in labels.tolist()], dtype=logits.dtype)
    return (epsilon * logits.softmax(1) - w) / len(logits)


@pytest.fixture
def logits():
    return (3 * random(1, 6, 5)).requires_grad_()


@pytest.mark.parametrize("exclude_label", [True, False])
@pytest.mark.parametrize("epsilon", [0.1, 0.35])
def test_value_and_gradient(logits, epsilon, exclude_label):
    loss = smoothing_loss(logits, LABELS, epsilon, exclude_label)
    assert loss.item() == pytest.approx(literal(logits, LABELS, epsilon, exclude_label), abs=1e-12, rel=1e-12)
    loss.backward()
    expected = literal_gradient(logits.detach(), LABELS, epsilon, exclude_label)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("exclude_label", [True, False])
@pytest.mark.parametrize("classes", [2, 5])
def test_with_the_labels_it_is_torchs_label_smoothing(logits, classes, exclude_label):
    # epsilon / (K - 1) off the label is epsilon' / K for epsilon' = epsilon K / (K - 1), and on the label
    # 1 - epsilon' + epsilon' / K = 1 - epsilon
    logits, labels, epsilon = logits[:, :classes], LABELS % classes, 0.1
    total = (1 - epsilon) * F.cross_entropy(logits, labels) + smoothing_loss(logits, labels, epsilon, exclude_label)
    equivalent = epsilon * classes / (classes - 1) if exclude_label else epsilon
    expected = F.cross_entropy(logits, labels, label_smoothing=equivalent)
    assert total.item() == pytest.approx(expected.item(), abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("exclude_label", [True, False])
def test_without_smoothing_the_loss_is_zero(logits, exclude_label):
    assert smoothing_loss(logits, LABELS, 0.0, exclude_label).item() == 0


@pytest.mark.parametrize(("variant", "exclude_label"), [("reference", True), ("paper", False)])
def test_the_method_is_cross_entropy_with_soft_labels(logits, variant, exclude_label, in_float64):
    student = Toy(Features([], torch.zeros(6, 3), logits.detach()))
    method = method_of("ls", f"method.variant={variant}", student=student)
    assert method.label_weight == pytest.approx(0.9)
    losses = method.batch_losses(Batch(torch.zeros(6, 1, 2, 2), LABELS, torch.arange(6)))
    soft = torch.tensor([weights(y, 5, 0.1, exclude_label) for y in LABELS.tolist()], dtype=torch.float64)
    soft[torch.arange(6), LABELS] += 0.9
    torch.testing.assert_close(soft.sum(1), torch.ones(6, dtype=torch.float64))
    expected = F.cross_entropy(logits, soft)
    assert sum(losses.values()).item() == pytest.approx(expected.item(), abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("exclude_label", [True, False])
def test_saturated_logits_are_finite(exclude_label):
    logits = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = smoothing_loss(logits, torch.tensor([1]), 0.1, exclude_label)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()

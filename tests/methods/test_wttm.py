"""WTTM against the formula of Zheng & Yang (2024), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.ttm import ttm_loss
from kdbench.methods.wttm import WTTM, wttm_loss
from kdbench.models.features import Features
from tests.helpers.numeric import random, softmax


def literal(student, teacher, exponent):
    """1/B sum_i U_i sum_k t_ik log(t_ik / q_ik), U_i = sum_k p_ik^gamma, and its gradient U_i (q_ik - t_ik) / B."""
    total, gradient = 0.0, []
    for s, z in zip(student.tolist(), teacher.tolist(), strict=True):
        q, powers = softmax(s), [v**exponent for v in softmax(z)]
        power_sum = sum(powers)
        t = [v / power_sum for v in powers]
        total += power_sum * sum(tk * math.log(tk / qk) for tk, qk in zip(t, q, strict=True))
        gradient.append([power_sum * (qk - tk) / len(student) for tk, qk in zip(t, q, strict=True)])
    return total / len(student), torch.tensor(gradient, dtype=torch.float64)


@pytest.fixture
def logits():
    return 3 * random(90, 7, 11), 3 * random(91, 7, 11)


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0])
def test_value_and_gradient(logits, exponent):
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    loss = wttm_loss(leaf, teacher, exponent)
    value, gradient = literal(student, teacher, exponent)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-12)


def test_the_weight_of_a_sample_comes_from_its_probabilities(logits):
    # so a constant that is added to the teacher's logits changes nothing
    student, teacher = logits
    expected = wttm_loss(student, teacher, 0.1).item()
    assert wttm_loss(student, teacher + 50.0, 0.1).item() == pytest.approx(expected, rel=1e-12)


def test_each_sample_has_its_own_weight():
    # 1 for a certain teacher, K^(1 - gamma) for an even one; the mean weight times the mean KL would be another value
    student = random(92, 2, 5)
    certain, even = torch.tensor([[800.0, 0, 0, 0, 0]]).double(), torch.zeros(1, 5).double()
    losses = [ttm_loss(student[i : i + 1], z, 0.1).item() for i, z in enumerate((certain, even))]
    expected = (losses[0] + 5**0.9 * losses[1]) / 2
    assert wttm_loss(student, torch.cat([certain, even]), 0.1).item() == pytest.approx(expected, rel=1e-12)


def test_with_exponent_one_it_is_ttm(logits):
    assert wttm_loss(*logits, 1.0).item() == pytest.approx(ttm_loss(*logits, 1.0).item(), rel=1e-12)


def test_the_weight_beside_the_whole_cross_entropy(logits):
    student, teacher = (Features([], z, z) for z in logits)
    method = WTTM(weight=2.25, exponent=0.1)
    expected = 2.25 * literal(*logits, 0.1)[0]
    assert method.losses(student, teacher, None)["wttm"].item() == pytest.approx(expected, rel=1e-12)
    assert method.label_weight == 1


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        loss = wttm_loss(student, teacher, 0.1)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

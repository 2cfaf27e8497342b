"""TTM against the formula of Zheng & Yang (2024), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.kd import kd_loss
from kdbench.methods.ttm import TTM, ttm_loss
from kdbench.models.features import Features
from tests.helpers.numeric import random, softmax


def power_transform(p, exponent):
    """p_k^gamma / sum_j p_j^gamma."""
    powers = [v**exponent for v in p]
    return [v / sum(powers) for v in powers]


def literal(student, teacher, exponent):
    """1/B sum_i sum_k t_ik (log t_ik - log q_ik), t the transformed teacher and q the student without a temperature."""
    total = 0.0
    for s, z in zip(student.tolist(), teacher.tolist(), strict=True):
        q, t = softmax(s), power_transform(softmax(z), exponent)
        total += sum(tk * (math.log(tk) - math.log(qk)) for tk, qk in zip(t, q, strict=True))
    return total / len(student)


def literal_gradient(student, teacher, exponent):
    """d/dz_ik = (q_ik - t_ik) / B, eq. 20."""
    rows = [
        [qk - tk for qk, tk in zip(softmax(s), power_transform(softmax(z), exponent), strict=True)]
        for s, z in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64) / len(student)


@pytest.fixture
def logits():
    return 3 * random(80, 7, 11), 3 * random(81, 7, 11)


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0])
def test_value_and_gradient(logits, exponent):
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    loss = ttm_loss(leaf, teacher, exponent)
    assert loss.item() == pytest.approx(literal(student, teacher, exponent), rel=1e-12)
    loss.backward()
    torch.testing.assert_close(leaf.grad, literal_gradient(student, teacher, exponent), rtol=0, atol=1e-12)


def test_neither_a_temperature_of_the_student_nor_its_square():
    # with exponent 1/T the target is KD's, but the loss is not: a student equal to that target has no loss
    teacher = 3 * random(82, 7, 11)
    assert ttm_loss(teacher / 4, teacher, 0.25).item() == pytest.approx(0, abs=1e-12)
    assert ttm_loss(teacher, teacher, 0.25).item() > 0.1
    assert kd_loss(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-12)
    student = 3 * random(83, 7, 11)
    assert ttm_loss(student, teacher, 1.0).item() == pytest.approx(kd_loss(student, teacher, 1.0).item(), rel=1e-12)


def test_it_is_kd_less_the_renyi_entropy_of_the_student(logits):
    # eq. 15, up to the teacher's entropy: D(t || q) = T D(t || q_T) - (T - 1) (H_1/T(q) - H(t))
    student, teacher = logits
    temperature = 4.0
    renyi = (student.softmax(1) ** (1 / temperature)).sum(1).log() / (1 - 1 / temperature)
    target = (teacher / temperature).softmax(1)
    shannon = -(target * target.log()).sum(1)
    expected = kd_loss(student, teacher, temperature) / temperature - (temperature - 1) * (renyi - shannon).mean()
    assert ttm_loss(student, teacher, 1 / temperature).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_weight_beside_the_whole_cross_entropy(logits):
    student, teacher = (Features([], z, z) for z in logits)
    method = TTM(weight=45.0, exponent=0.1)
    assert method.losses(student, teacher, None)["ttm"].item() == pytest.approx(45 * literal(*logits, 0.1), rel=1e-12)
    assert method.label_weight == 1


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        loss = ttm_loss(student, teacher, 0.1)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

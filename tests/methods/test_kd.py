"""KD against the formula of Hinton et al. (2015), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.kd import KD, kd_loss


def literal(student, teacher, temperature):
    """T^2 / B * sum_i sum_k p_ik (log p_ik - log q_ik), p and q the softmax of teacher and student at T."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        es, et = [math.exp(v / temperature) for v in s], [math.exp(v / temperature) for v in t]
        q, p = [v / sum(es) for v in es], [v / sum(et) for v in et]
        total += sum(pk * (math.log(pk) - math.log(qk)) for pk, qk in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def literal_gradient(student, teacher, temperature):
    """d/dz_ik = T / B (q_ik - p_ik)."""
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature / len(student) * (q - p)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return (3 * torch.randn(7, 11, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_value_and_gradient(logits, temperature):
    student, teacher = logits
    student.requires_grad_()
    loss = kd_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(literal(student, teacher, temperature), abs=1e-12, rel=1e-12)
    loss.backward()
    expected = literal_gradient(student.detach(), teacher, temperature)
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)


def test_zero_for_equal_logits_up_to_a_shift(logits):
    student, _ = logits
    assert kd_loss(student, student + 5.0, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_large_temperature_is_logit_matching(logits):
    # sect. 2.1 of the paper: for zero-mean logits the gradient tends to (z_s - z_t) / (B K)
    student, teacher = (z - z.mean(1, keepdim=True) for z in logits)
    student.requires_grad_()
    kd_loss(student, teacher, 1e5).backward()
    expected = (student.detach() - teacher) / student.numel()
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-6)


def test_weights_split_between_labels_and_teacher():
    assert KD(temperature=4.0, alpha=0.9).label_weight == pytest.approx(0.1)


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-6e4, 6e4, 0.0]]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()

"""PKT against the formula of Passalis & Tefas (2018) and the form of the authors' code, written out in float64."""

import math

import pytest
import torch

from kdbench.methods.pkt import pkt_loss
from tests.helpers.numeric import numeric_gradient, random

EPS = 1e-7


def literal_probabilities(embeddings):
    """Row i: p_j|i = K_ij / sum_k K_ik, K_ij = (cos(e_i, e_j) + 1) / 2; samples of length 0 are orthogonal to all."""
    rows = embeddings.tolist()
    norms = [math.sqrt(sum(v**2 for v in row)) or 1.0 for row in rows]
    kernel = [
        [(sum(x * y for x, y in zip(a, b, strict=True)) / (n * m) + 1) / 2 for b, m in zip(rows, norms, strict=True)]
        for a, n in zip(rows, norms, strict=True)
    ]
    return [[max(k, 0.0) / sum(row) for k in row] for row in kernel]


def literal(student, teacher, eps=EPS):
    """1/B^2 sum_ij p^t_j|i log( (p^t_j|i + eps) / (p^s_j|i + eps) )."""
    total = 0.0
    for q_row, p_row in zip(literal_probabilities(student), literal_probabilities(teacher), strict=True):
        total += sum(p * math.log((p + eps) / (q + eps)) for q, p in zip(q_row, p_row, strict=True))
    return total / len(student) ** 2


def value_and_gradient(student, teacher):
    leaf = student.clone().requires_grad_()
    loss = pkt_loss(leaf, teacher)
    loss.backward()
    return loss.item(), leaf.grad


def test_value_and_gradient():
    student, teacher = random(60, 5, 4), random(61, 5, 7)
    value, gradient = value_and_gradient(student, teacher)
    assert value == pytest.approx(literal(student, teacher), rel=1e-12)
    assert value == pytest.approx(literal(student, teacher, eps=0.0), rel=1e-4)  # eps is no more than a guard
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_orthogonal_samples_against_equal_ones():
    # K_s = 1 on and 1/2 off the diagonal, p_s = 1/2 and 1/4; p_t = 1/3: the mean is over all B^2 pairs
    expected = 3 * (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3 / 9
    assert pkt_loss(torch.eye(3), torch.ones(3, 5)).item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_is_the_first_argument_of_the_divergence():
    student, teacher = 3 * random(62, 5, 2), random(63, 5, 2)
    assert literal(student, teacher) != pytest.approx(literal(teacher, student), rel=1e-2)
    assert pkt_loss(student, teacher).item() == pytest.approx(literal(student, teacher), rel=1e-12)


def test_scaling_samples_and_rotating_either_changes_nothing():
    student, teacher = random(64, 5, 4), random(65, 5, 7)
    expected = pkt_loss(student, teacher).item()
    scale = torch.tensor([1e-3, 1.0, 5.0, 40.0, 1e3], dtype=torch.float64)[:, None]
    rotation, _ = torch.linalg.qr(random(66, 4, 4))
    assert pkt_loss(scale * student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert pkt_loss(student, scale * teacher).item() == pytest.approx(expected, rel=1e-9)
    assert pkt_loss(student @ rotation, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_zero_with_a_zero_gradient_for_equal_embeddings():
    student = random(67, 5, 4)
    value, gradient = value_and_gradient(student, 2 * student)
    assert value == pytest.approx(0, abs=1e-15)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_equal_and_empty_samples(dtype):
    # the kernel of opposite samples is 0: without a guard, the logarithm and its gradient are infinite
    student, teacher = random(68, 6, 4).to(dtype), random(69, 6, 7).to(dtype)
    student[1], student[2], student[3] = -student[0], student[0], 0.0
    value, gradient = value_and_gradient(student, teacher)
    assert value == pytest.approx(literal(student, teacher), rel=1e-9 if dtype == torch.float64 else 1e-3)
    assert torch.isfinite(gradient).all()
    assert gradient[3].abs().max() < 10  # dividing by the least allowed norm would make it huge
    value, gradient = value_and_gradient(teacher, student)
    assert math.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [6e4, 6e-5])
def test_float32_near_the_limits_of_float16(scale):
    student, teacher = scale * random(70, 8, 64).float(), scale * random(71, 8, 32).float()
    value, gradient = value_and_gradient(student, teacher)
    assert value == pytest.approx(literal(student, teacher), rel=1e-3)
    assert torch.isfinite(gradient).all()


def test_a_batch_of_one_is_zero():
    value, gradient = value_and_gradient(random(72, 1, 4), random(73, 1, 7))
    assert value == 0
    assert torch.isfinite(gradient).all()

"""ABKD against the alpha-beta divergence of Cichocki, Cruces & Amari (2011), written out literally in float64."""

import math

import pytest
import torch

from kdbench.conformance.toys import batch_of
from kdbench.errors import UserError
from kdbench.methods.abkd import ABKD, abkd_loss
from kdbench.methods.kd import kd_loss
from tests.helpers.methods import method_of, step
from tests.helpers.numeric import numeric_gradient, random, softmax

LIMITS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.5), (1.0, -1.0), (-0.5, 0.5), (0.0, 0.0)]
ORDINARY = [(0.8, 0.3), (0.5, 0.5), (1.0, 1.0), (0.9, 0.3), (2.0, -0.5)]


def of_one_class(p, q, a, b):
    """What one class adds to D(p || q)."""
    if a == 0 and b == 0:
        return (math.log(p) - math.log(q)) ** 2 / 2
    if a == 0:
        return (q**b * math.log(q**b / p**b) - q**b + p**b) / b**2
    if b == 0:
        return (p**a * math.log(p**a / q**a) - p**a + q**a) / a**2
    if a + b == 0:
        return (math.log(q**a / p**a) + p**a / q**a - 1) / a**2
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)


def literal(student, teacher, a, b, temperature):
    """1/B sum_i sum_k d(p_ik, q_ik), p and q the softmax of teacher and student at T."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True):
            total += of_one_class(p, q, a, b)
    return total / len(student)


@pytest.fixture
def logits():
    return 3 * random(1, 7, 11), 3 * random(2, 7, 11)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("a", "b"), ORDINARY + LIMITS)
def test_value_and_gradient(logits, a, b, temperature):
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    loss = abkd_loss(leaf, teacher, a, b, temperature)
    assert loss.item() == pytest.approx(literal(student, teacher, a, b, temperature), rel=1e-10)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, a, b, temperature), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(("a", "b"), LIMITS)
def test_limits_are_those_of_the_values_around_them(logits, a, b):
    student, teacher = logits
    at_the_limit = abkd_loss(student, teacher, a, b, 4.0).item()
    assert at_the_limit == pytest.approx(literal(student, teacher, a + 1e-5, b + 2e-5, 4.0), rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_and_reverse_kl_without_the_square_of_the_temperature(logits, temperature):
    student, teacher = logits
    forward = kd_loss(student, teacher, temperature).item() / temperature**2
    reverse = kd_loss(teacher, student, temperature).item() / temperature**2
    assert abkd_loss(student, teacher, 1.0, 0.0, temperature).item() == pytest.approx(forward, rel=1e-10)
    assert abkd_loss(student, teacher, 0.0, 1.0, temperature).item() == pytest.approx(reverse, rel=1e-10)


def test_half_the_squared_distance_of_the_probabilities(logits):
    student, teacher = logits
    expected = (student.softmax(1) - teacher.softmax(1)).square().sum(1).mean().item() / 2
    assert abkd_loss(student, teacher, 1.0, 1.0, 1.0).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("a", "b"), ORDINARY + LIMITS)
def test_zero_for_equal_logits_up_to_a_shift_and_positive_otherwise(logits, a, b):
    student, teacher = logits
    assert abkd_loss(student, student + 5.0, a, b, 4.0).item() == pytest.approx(0, abs=1e-12)
    assert abkd_loss(student, teacher, a, b, 4.0).item() > 1e-3


@pytest.mark.parametrize(("a", "b"), [(0.01, 0.01), (0.01, 0.5), (0.8, 0.3), (0.02, -0.01)])
def test_float32_is_exact_enough_for_the_smallest_exponents(logits, a, b):
    student, teacher = (z.float() for z in logits)
    expected = literal(student.double(), teacher.double(), a, b, 4.0)
    assert abkd_loss(student, teacher, a, b, 4.0).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_saturated_logits_are_finite(a, b):
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = abkd_loss(student, torch.tensor([[-6e4, 6e4, 0.0]]), a, b, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("a", "b"), [(1e-3, 0.5), (0.5, -1e-3), (0.5, -0.501)])
def test_exponents_too_close_to_a_limit_are_refused(a, b):
    with pytest.raises(UserError, match=r"abkd\.(alpha|beta|alpha\+beta)=-?0\.001.* is not allowed: .* 0 or at least"):
        method_of("abkd", f"method.alpha={a}", f"method.beta={b}")


def test_the_divergence_is_weighted_and_added_to_the_whole_cross_entropy():
    method, batch = method_of("abkd", "method.weight=5"), batch_of()
    student, teacher = method.forward_both(batch)
    losses = method.batch_losses(batch)
    expected = abkd_loss(student.logits, teacher.logits, 0.8, 0.3, 4.0)
    torch.testing.assert_close(losses["abkd"], 5 * expected)
    torch.testing.assert_close(losses["ce"], torch.nn.functional.cross_entropy(student.logits, batch.labels))
    assert ABKD(alpha=0.8, beta=0.3, temperature=4.0, weight=32.0).label_weight == 1
    assert torch.isfinite(step(method, batch))

"""SP against the formula of Tung & Mori (2019), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.sp import similarity, sp_loss
from tests.helpers.numeric import numeric_gradient


def literal_similarity(maps):
    """Row i: G_i / ||G_i||_2, G_ij = sum_chw f_i f_j."""
    rows = maps.flatten(1).tolist()
    gram = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    return [[g / math.sqrt(sum(v**2 for v in row)) for g in row] for row in gram]


def literal(student, teacher):
    """1/B^2 sum_ij (G_S - G_T)_ij^2."""
    total = 0.0
    for rows in zip(literal_similarity(student), literal_similarity(teacher), strict=True):
        total += sum((s - t) ** 2 for s, t in zip(*rows, strict=True))
    return total / len(student) ** 2


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(28)
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in [(5, 3, 2, 4), (5, 4, 3, 3)]]


def test_similarity(maps):
    expected = torch.tensor(literal_similarity(maps[0]), dtype=torch.float64)
    # rows of different norm: not symmetric, and not the Gram matrix over its own norm
    assert not torch.allclose(expected, expected.T)
    torch.testing.assert_close(similarity(maps[0]), expected, rtol=1e-12, atol=1e-12)


def test_value_and_gradient(maps):
    student, teacher = maps
    leaf = student.clone().requires_grad_()
    loss = sp_loss(leaf, teacher)
    assert loss.item() == pytest.approx(literal(student, teacher), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_equal_samples_against_orthogonal_ones(batch):
    # G_T = 1/sqrt(B) everywhere, G_S the identity: B rows of squared distance 2 - 2/sqrt(B)
    student = torch.eye(batch).view(batch, batch, 1, 1)
    teacher = torch.ones(batch, 2, 3, 3)
    assert sp_loss(student, teacher).item() == pytest.approx((2 - 2 / math.sqrt(batch)) / batch)


def test_scaling_and_rotating_either_changes_nothing(maps):
    student, teacher = maps
    expected = sp_loss(student, teacher).item()
    assert sp_loss(1e3 * student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert sp_loss(student, 1e-3 * teacher).item() == pytest.approx(expected, rel=1e-9)
    rotation, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(29)).double())
    rotated = (student.flatten(1) @ rotation).view_as(student)
    assert sp_loss(rotated, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_scaling_one_sample_does_change_it(maps):
    student, teacher = maps
    scale = torch.tensor([1.0, 1.0, 5.0, 1.0, 1.0], dtype=torch.float64).view(5, 1, 1, 1)
    changed = sp_loss(scale * student, teacher).item()
    assert changed == pytest.approx(literal(scale * student, teacher), rel=1e-12)
    assert changed != pytest.approx(sp_loss(student, teacher).item(), rel=1e-3)


def test_order_of_the_batch_changes_nothing(maps):
    student, teacher = maps
    order = [3, 1, 4, 0, 2]
    assert sp_loss(student[order], teacher[order]).item() == pytest.approx(sp_loss(student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_at_most_four_over_the_batch(batch):
    generator = torch.Generator().manual_seed(30)
    for _ in range(20):
        student = torch.randn(batch, 1, 1, 1, generator=generator)
        teacher = torch.randn(batch, 2, 1, 1, generator=generator)
        assert 0 <= sp_loss(student, teacher).item() <= 4 / batch


def test_zero_with_a_zero_gradient_for_equal_maps(maps):
    student = maps[0].requires_grad_()
    loss = sp_loss(student, student.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-24)
    assert student.grad.abs().max() < 1e-12


def test_a_batch_of_one_is_zero(maps):
    student, teacher = (m[:1].requires_grad_() for m in maps)
    loss = sp_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("zeros", [[1], [0, 1, 2, 3, 4]])
def test_samples_whose_maps_are_zero_are_finite(maps, zeros):
    student, teacher = maps
    student[zeros] = 0
    student.requires_grad_()
    loss = sp_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_large_float32_maps_are_finite():
    generator = torch.Generator().manual_seed(31)
    student = (6e4 * torch.rand(8, 64, 8, 8, generator=generator)).requires_grad_()
    loss = sp_loss(student, 6e4 * torch.rand(8, 32, 8, 8, generator=generator))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()

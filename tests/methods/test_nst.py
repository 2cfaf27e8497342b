"""NST with the polynomial kernel of Huang & Wang (2017), written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.feature_maps import pooled
from kdbench.methods.nst import NST, nst_loss
from kdbench.models.features import Features, Shapes
from tests.helpers.numeric import numeric_gradient, random


def channels(maps):
    """Each channel of one sample's maps (C,H,W) as a vector of length 1."""
    rows = [[v for row in channel for v in row] for channel in maps]
    return [[v / (math.sqrt(sum(x**2 for x in row)) or 1.0) for v in row] for row in rows]


def mean_kernel(first, second):
    """1/(C C') sum_ij (f_i . f'_j)^2."""
    values = [sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a in first for b in second]
    return sum(values) / len(values)


def literal(student, teacher):
    """1/B sum_b [ mean k(t,t') + mean k(s,s') - 2 mean k(s,t) ]."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = channels(s), channels(t)
        total += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    return total / len(student)


def value_and_gradient(student, teacher):
    leaf = student.clone().requires_grad_()
    loss = nst_loss(leaf, teacher)
    loss.backward()
    return loss.item(), leaf.grad


def test_value_and_gradient():
    student, teacher = random(90, 3, 4, 2, 3), random(91, 3, 5, 2, 3)
    value, gradient = value_and_gradient(student, teacher)
    assert value == pytest.approx(literal(student, teacher), rel=1e-12)
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("sizes", [((2, 3, 4, 4), (2, 5, 2, 2)), ((2, 3, 2, 2), (2, 5, 4, 4))])
def test_the_larger_map_is_pooled_first(sizes):
    student, teacher = random(92, *sizes[0]), random(93, *sizes[1])
    expected = literal(pooled(student, (2, 2)), pooled(teacher, (2, 2)))
    assert nst_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_channels_at_different_pixels():
    # two channels at one pixel against one at another: 1 + 1 - 0; normalising pixels instead of channels differs
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
    student[0, 0, 0, 0], student[0, 1, 0, 0], teacher[0, 0, 1, 1] = 3.0, -0.5, 7.0
    assert nst_loss(student, teacher).item() == pytest.approx(2.0)


def test_scale_sign_order_and_number_of_channels_change_nothing():
    student, teacher = random(94, 3, 4, 2, 3), random(95, 3, 5, 2, 3)
    expected = nst_loss(student, teacher).item()
    scale = torch.tensor([1e3, -1e-3, -2.0, 0.5], dtype=torch.float64)[:, None, None]
    assert nst_loss((scale * student)[:, [2, 0, 3, 1]], teacher).item() == pytest.approx(expected, rel=1e-9)
    assert nst_loss(student, teacher.repeat(1, 2, 1, 1)).item() == pytest.approx(expected, rel=1e-9)


def test_zero_with_a_zero_gradient_for_equal_maps():
    student = random(96, 3, 4, 2, 3)
    value, gradient = value_and_gradient(student, student.clone())
    assert value == pytest.approx(0, abs=1e-15)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_that_are_zero_have_no_gradient(dtype):
    student, teacher = random(97, 3, 4, 2, 3).to(dtype), random(98, 3, 5, 2, 3).to(dtype)
    student[0], student[1, 2], teacher[2, 1] = 0, 0, 0
    value, gradient = value_and_gradient(student, teacher)
    assert value == pytest.approx(literal(student, teacher), rel=1e-4)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()
    assert not gradient[1, 2].any()


def test_large_float32_maps_agree_with_float64():
    student, teacher = 6e4 * random(99, 2, 32, 16, 16).relu(), 6e4 * random(100, 2, 64, 16, 16).relu()
    value, gradient = value_and_gradient(student.float(), teacher.float())
    assert value == pytest.approx(nst_loss(student, teacher).item(), rel=1e-4)
    assert torch.isfinite(gradient).all()


def largest_saved(student, teacher):
    """The number of elements of the largest tensor kept for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        nst_loss(student.requires_grad_(), teacher)
    return max(sizes)


def test_memory_is_that_of_maps_and_of_channels_by_channels():
    # not channels by channels by pixels: 8 * 16 * 16 * 64
    maps = torch.rand(8, 16, 8, 8)
    assert largest_saved(maps, torch.rand(8, 16, 8, 8)) <= 8 * 16 * 64


def test_the_maps_are_summed_and_weighted():
    method = NST(50.0, None)
    shapes = Shapes([(2, 4, 4), (3, 4, 4), (4, 2, 2)], 4, 3)
    method.prepare(shapes, shapes)
    student, teacher = (
        Features([random(seed + i, 2, *shape) for i, shape in enumerate(shapes.stages)], None, None)
        for seed in (101, 105)
    )
    expected = sum(literal(student.stages[i], teacher.stages[i]) for i in (1, 2))  # not the stem
    assert method.losses(student, teacher, None)["nst"].item() == pytest.approx(50 * expected, rel=1e-12)


def test_maps_of_one_pixel_are_refused():
    with pytest.raises(UserError, match=r"nst cannot compare stage map 0 .*1x1"):
        NST(50.0, [0]).prepare(Shapes([(8, 1, 1)], 8, 3), Shapes([(8, 4, 4)], 8, 3))

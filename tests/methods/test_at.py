"""AT against the formulas of Zagoruyko & Komodakis (2017), paper and code, written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.at import AT, at_loss, attention
from kdbench.models.features import Shapes
from tests.helpers.numeric import numeric_gradient, random


def pooled(channel, height, width):
    """Means over windows of H/h rows and W/w columns."""
    rows, columns = len(channel) // height, len(channel[0]) // width
    return [
        [
            sum(channel[i * rows + r][j * columns + c] for r in range(rows) for c in range(columns)) / (rows * columns)
            for j in range(width)
        ]
        for i in range(height)
    ]


def literal_attention(maps, power):
    """q = Q / ||Q||_2, Q_hw = sum_c |f_chw|^p; maps (C,H,W) as lists."""
    height, width = len(maps[0]), len(maps[0][0])
    q = [sum(abs(channel[h][w]) ** power for channel in maps) for h in range(height) for w in range(width)]
    norm = math.sqrt(sum(v**2 for v in q))
    return [v / norm for v in q]


def literal(student, teacher, power, variant):
    """paper: 1/B sum_b 1/2 ||q_S - q_T||_2; reference: 1/(B HW) sum_b ||q_S - q_T||^2."""
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q_s, q_t = (literal_attention([pooled(c, height, width) for c in maps], power) for maps in (s, t))
        squares = sum((a - b) ** 2 for a, b in zip(q_s, q_t, strict=True))
        total += math.sqrt(squares) / 2 if variant == "paper" else squares / (height * width)
    return total / len(student)


VARIANTS = ["reference", "paper"]
POWERS = [1, 2, 3, 4]


@pytest.mark.parametrize("power", POWERS)
def test_attention(power):
    maps = random(18, 3, 5, 2, 4)
    expected = torch.tensor([literal_attention(m, power) for m in maps.tolist()], dtype=torch.float64)
    torch.testing.assert_close(attention(maps, power), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    "sizes", [((4, 3, 4, 4), (4, 5, 4, 4)), ((4, 3, 4, 4), (4, 5, 2, 2)), ((4, 3, 2, 2), (4, 2, 4, 4))]
)
def test_value_and_gradient(sizes, power, variant):
    student, teacher = random(19, *sizes[0]), random(20, *sizes[1])
    leaf = student.clone().requires_grad_()
    loss = at_loss(leaf, teacher, power, variant)
    assert loss.item() == pytest.approx(literal(student, teacher, power, variant), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, power, variant), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_attention_of_constant_and_of_one_pixel():
    flat, peak = torch.full((1, 2, 2, 3), -4.0), torch.zeros(1, 2, 2, 3)
    peak[0, 1, 0, 2] = 5.0
    torch.testing.assert_close(attention(flat, 2), torch.full((1, 6), 1 / math.sqrt(6)))
    torch.testing.assert_close(attention(peak, 2), torch.tensor([[0.0, 0, 1, 0, 0, 0]]))


def test_the_largest_distance():
    # each attends to a single pixel, and not to the same: ||q_S - q_T|| = sqrt 2
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    student[:, 0, 0, 0] = teacher[:, 1, 2, 3] = 1.0
    assert at_loss(student, teacher, 2, "paper").item() == pytest.approx(math.sqrt(2) / 2)
    assert at_loss(student, teacher, 2, "reference").item() == pytest.approx(2 / 16)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scaling_each_sample_changes_nothing(variant, power):
    student, teacher = random(21, 4, 3, 4, 4), random(22, 4, 5, 2, 2)
    scale = torch.tensor([0.1, 1.0, 7.0, 30.0], dtype=torch.float64).view(4, 1, 1, 1)
    expected = at_loss(student, teacher, power, variant).item()
    assert at_loss(scale * student, teacher, power, variant).item() == pytest.approx(expected, rel=1e-9)
    assert at_loss(student, scale * teacher, power, variant).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_signs_and_order_of_channels_change_nothing(variant):
    student, teacher = random(23, 4, 3, 4, 4), random(24, 4, 5, 4, 4)
    expected = at_loss(student, teacher, 3, variant).item()
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).view(3, 1, 1)
    assert at_loss((signs * student)[:, [2, 0, 1]], teacher, 3, variant).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_with_a_finite_gradient_for_equal_maps(variant, dtype):
    student = random(25, 4, 3, 4, 4).to(dtype).requires_grad_()
    loss = at_loss(student, student.detach().clone(), 2, variant)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_whose_map_is_zero_is_finite(variant, power):
    student = random(26, 4, 3, 4, 4)
    student[1] = 0
    student.requires_grad_()
    loss = at_loss(student, random(27, 4, 5, 4, 4), power, variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_of_one_pixel_would_always_give_zero(variant):
    assert at_loss(random(28, 4, 3, 1, 1), random(29, 4, 5, 4, 4), 2, variant).item() == 0


def prepared(stages, *maps):
    """AT between a student and a teacher with such maps (C, H, W)."""
    method = AT(1.0, 2, stages, "reference")
    method.prepare(*(Shapes(list(shapes), 8, 10) for shapes in maps))
    return method.pairs


@pytest.mark.parametrize(
    ("stages", "student", "teacher", "pair"),
    [
        (None, [(8, 4, 4), (8, 1, 1)], [(8, 4, 4), (8, 2, 2)], r"map 1 of the student \(1x1\) with 1 .* \(2x2\)"),
        (None, [(8, 1, 1)], [(8, 4, 4)], r"map 0 of the student \(1x1\) with 0 of the teacher \(4x4\)"),
        ([0, 1], [(8, 4, 4), (8, 2, 1)], [(8, 4, 4), (8, 1, 2)], r"map 1 of the student \(2x1\) with 1 .* \(1x2\)"),
        ([0, [0, -1]], [(8, 4, 4)], [(8, 4, 4), (8, 1, 1)], r"map 0 of the student \(4x4\) with 1 .* \(1x1\)"),
    ],
)
def test_maps_with_one_pixel_in_common_are_refused(stages, student, teacher, pair):
    with pytest.raises(UserError, match=pair + r".*1x1 pixels its loss is always 0; at\.stages=") as caught:
        prepared(stages, student, teacher)
    assert "\n" not in str(caught.value)


def test_maps_with_more_pixels_in_common_are_not_refused():
    assert prepared([0], [(8, 4, 4), (8, 1, 1)], [(8, 4, 4), (8, 1, 1)]) == [(0, 0)]
    assert prepared(None, [(8, 2, 1)], [(8, 4, 4)]) == [(0, 0)]

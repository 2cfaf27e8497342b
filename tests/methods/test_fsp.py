"""FSP against the formula of Yim et al. (2017), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.fsp import fsp_loss, fsp_matrix
from tests.helpers.numeric import numeric_gradient


def pooled(channel, height, width, pooling):
    """Entry (i, j): max or mean over the rows floor(iH/h) to ceil((i+1)H/h), and likewise over columns."""
    big_h, big_w = len(channel), len(channel[0])
    out = []
    for i in range(height):
        for j in range(width):
            rows = range(i * big_h // height, math.ceil((i + 1) * big_h / height))
            columns = range(j * big_w // width, math.ceil((j + 1) * big_w / width))
            window = [channel[r][c] for r in rows for c in columns]
            out.append(max(window) if pooling == "max" else sum(window) / len(window))
    return out


def literal_matrix(first, second, pooling):
    """G_ij = 1/(hw) sum_s sum_t F1_ist F2_jst."""
    height, width = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    matrices = []
    for one, two in zip(first.tolist(), second.tolist(), strict=True):
        one = [pooled(channel, height, width, pooling) for channel in one]
        two = [pooled(channel, height, width, pooling) for channel in two]
        matrices.append([[sum(x * y for x, y in zip(a, b, strict=True)) / (height * width) for b in two] for a in one])
    return matrices


def literal(student, teacher, pooling, distance):
    """sum_n 1/B sum_b sum_ij (G_S - G_T)^2; mean: the mean over i and j in place of their sum."""
    total = 0.0
    for n in range(len(student) - 1):
        student_g, teacher_g = (literal_matrix(maps[n], maps[n + 1], pooling) for maps in (student, teacher))
        squares = [
            (s - t) ** 2
            for matrices in zip(student_g, teacher_g, strict=True)
            for rows in zip(*matrices, strict=True)
            for s, t in zip(*rows, strict=True)
        ]
        total += sum(squares) / (len(squares) if distance == "mean" else len(student_g))
    return total


def random(seed, *sizes, batch=3):
    """Maps (B,C,H,W), one for each (C,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *size, generator=generator, dtype=torch.float64) for size in sizes]


PAIRS = [((3, 4, 4), (2, 4, 4)), ((3, 4, 4), (2, 2, 2)), ((3, 2, 2), (2, 4, 4)), ((3, 5, 5), (2, 3, 3))]


@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_matrix(first, second, pooling):
    one, two = random(6, first, second)
    matrix = fsp_matrix(one, two, pooling)
    assert matrix.shape == (3, 3, 2)
    expected = torch.tensor(literal_matrix(one, two, pooling), dtype=torch.float64)
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-12)


STUDENT = [(2, 4, 4), (3, 4, 4), (2, 2, 2)]
# the same numbers of channels, other sizes
TEACHER = [(2, 6, 6), (3, 6, 6), (2, 3, 3)]


@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize("distance", ["mean", "sum"])
def test_value_and_gradient(pooling, distance):
    student, teacher = random(7, *STUDENT), random(8, *TEACHER)
    leaves = [x.clone().requires_grad_() for x in student]
    loss = fsp_loss(leaves, teacher, pooling, distance)
    assert loss.item() == pytest.approx(literal(student, teacher, pooling, distance), rel=1e-12)
    loss.backward()
    for n, leaf in enumerate(leaves):

        def moved(x, n=n):
            return literal([*student[:n], x, *student[n + 1 :]], teacher, pooling, distance)

        expected = numeric_gradient(moved, student[n])
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_gradient_of_one_pair_in_closed_form():
    """d/dF1 = 2 / (B hw) (G_S - G_T) F2 and d/dF2 its mirror, for the sum of squares."""
    one, two = (x.requires_grad_() for x in random(9, (3, 4, 4), (2, 4, 4)))
    teacher = random(10, (3, 4, 4), (2, 4, 4))
    fsp_loss([one, two], teacher, "max", "sum").backward()
    difference = torch.tensor(literal_matrix(one, two, "max"), dtype=torch.float64)
    difference -= torch.tensor(literal_matrix(*teacher, "max"), dtype=torch.float64)
    factor = 2 / (3 * 16)
    torch.testing.assert_close(one.grad, factor * torch.einsum("bij,bjhw->bihw", difference, two.detach()))
    torch.testing.assert_close(two.grad, factor * torch.einsum("bij,bihw->bjhw", difference, one.detach()))


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_matrix_of_constant_maps_is_the_product_of_the_constants(pooling):
    one, two = torch.full((2, 3, 8, 8), 1.5), torch.full((2, 4, 4, 4), -2.0)
    torch.testing.assert_close(fsp_matrix(one, two, pooling), torch.full((2, 3, 4), -3.0))


def test_max_and_average_pooling_of_a_peak():
    one = torch.zeros(1, 1, 4, 4)
    one[0, 0, 0, 0] = 4.0
    two = torch.ones(1, 1, 2, 2)
    # one pixel of four is 4, or the mean of its window 1
    assert fsp_matrix(one, two, "max").item() == pytest.approx(1.0)
    assert fsp_matrix(one, two, "avg").item() == pytest.approx(0.25)


def test_matrix_does_not_depend_on_the_order_of_pixels():
    one, two = random(11, (3, 4, 4), (2, 4, 4))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(12))
    shuffled = [x.flatten(2)[:, :, order].view_as(x) for x in (one, two)]
    torch.testing.assert_close(fsp_matrix(*shuffled, "max"), fsp_matrix(one, two, "max"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", ["mean", "sum"])
def test_zero_for_equal_maps(distance):
    student = random(13, *STUDENT)
    assert fsp_loss(student, [x.clone() for x in student], "max", distance).item() == pytest.approx(0, abs=1e-12)


def test_the_two_distances_differ_by_the_size_of_the_matrix():
    student, teacher = random(14, *STUDENT[:2]), random(15, *TEACHER[:2])
    total, mean = (fsp_loss(student, teacher, "avg", distance).item() for distance in ("sum", "mean"))
    assert total == pytest.approx(2 * 3 * mean, rel=1e-12)


def test_loss_is_the_sum_over_consecutive_pairs():
    student, teacher = random(16, *STUDENT), random(17, *TEACHER)
    parts = [fsp_loss(student[n : n + 2], teacher[n : n + 2], "max", "mean").item() for n in range(2)]
    assert fsp_loss(student, teacher, "max", "mean").item() == pytest.approx(sum(parts), rel=1e-12)

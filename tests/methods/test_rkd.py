"""RKD against the formulas of Park et al. (2019), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.rkd import angle_loss, distance_loss
from tests.helpers.numeric import numeric_gradient, random


def huber(x):
    """x^2 / 2 for |x| <= 1, else |x| - 1/2."""
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def distances(e):
    """psi(i, j) = ||e_i - e_j|| / mu, mu the mean of the distances that are not 0."""
    d = [[math.sqrt(dot(minus(a, b), minus(a, b))) for b in e] for a in e]
    positive = [v for row in d for v in row if v > 0]
    mu = sum(positive) / len(positive) if positive else 1.0
    return [v / mu for row in d for v in row]


def angles(e):
    """psi(i, j, k) = cos angle(e_i - e_j, e_k - e_j), 0 where a difference is 0."""
    out = []
    for i in e:
        for j in e:
            for k in e:
                a, b = minus(i, j), minus(k, j)
                norms = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
                out.append(dot(a, b) / norms if norms else 0.0)
    return out


def literal(relation, student, teacher):
    """Mean of Huber(psi_S - psi_T) over all pairs (i, j), or all triplets (i, j, k)."""
    differences = minus(relation(student.tolist()), relation(teacher.tolist()))
    return sum(map(huber, differences)) / len(differences)


def value_and_gradient(function, student, teacher):
    leaf = student.clone().requires_grad_()
    loss = function(leaf, teacher)
    loss.backward()
    return loss.item(), leaf.grad


BOTH = pytest.mark.parametrize(
    ("function", "relation"), [(distance_loss, distances), (angle_loss, angles)], ids=["distance", "angle"]
)
# an outlier in the student gives differences above 1, where the Huber loss is not quadratic
OUTLIER = torch.tensor([1.0, 1.0, 40.0, 1.0, 1.0, 1.0], dtype=torch.float64).view(6, 1)


@BOTH
@pytest.mark.parametrize("scale", [torch.ones(6, 1, dtype=torch.float64), OUTLIER], ids=["even", "outlier"])
def test_value_and_gradient(function, relation, scale):
    student, teacher = scale * random(32, 6, 4), random(33, 6, 7)
    value, gradient = value_and_gradient(function, student, teacher)
    assert value == pytest.approx(literal(relation, student, teacher), rel=1e-12)
    expected = numeric_gradient(lambda x: literal(relation, x, teacher), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_distances_of_three_points_on_a_line():
    # distances 1, 2, 3 twice each, mean 2; against an equilateral triangle: 1/2, 1, 3/2 against 1
    line = torch.tensor([[0.0], [1.0], [3.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert distance_loss(line, triangle).item() == pytest.approx(2 * (0.125 + 0 + 0.125) / 9)


def test_angles_of_three_points_on_a_line():
    # cos at the middle point -1, at the ends 1; in the triangle 1/2; the two orders of i and k
    line = torch.tensor([[0.0], [1.0], [3.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    expected = 2 * (huber(1.5) + huber(0.5) + huber(0.5)) / 27
    assert angle_loss(line, triangle).item() == pytest.approx(expected, rel=1e-5)


def rotated(e, seed):
    rotation, _ = torch.linalg.qr(random(seed, e.shape[1], e.shape[1]))
    return e @ rotation


MOVES = {
    "scaled up": lambda e: 1e3 * e,
    "scaled down": lambda e: 1e-3 * e,
    "translated": lambda e: e + 50 * random(34, 1, e.shape[1]),
    "rotated": lambda e: rotated(e, 35),
    "all three": lambda e: 5 * rotated(e, 36) - 3,
    "in more dimensions": lambda e: torch.cat([e, torch.ones(len(e), 2, dtype=e.dtype)], 1),
}


@BOTH
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_invariant_to_scaling_translation_and_rotation_of_either(function, relation, move):
    student, teacher = random(37, 6, 4), random(38, 6, 7)
    expected = function(student, teacher).item()
    assert function(move(student), teacher).item() == pytest.approx(expected, rel=1e-8)
    assert function(student, move(teacher)).item() == pytest.approx(expected, rel=1e-8)


@BOTH
def test_zero_with_a_zero_gradient_for_equal_embeddings(function, relation):
    student = random(39, 6, 4)
    value, gradient = value_and_gradient(function, student, student.clone())
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-9
    assert function(student, 2 * student + 1).item() == pytest.approx(0, abs=1e-12)


@BOTH
def test_gradient_is_orthogonal_to_scaling_and_translation(function, relation):
    # neither changes the loss: sum_i g_i = 0 and sum_i g_i e_i = 0; the second would fail with a detached mu
    student, teacher = random(40, 6, 4), random(41, 6, 7)
    _, gradient = value_and_gradient(function, student, teacher)
    assert gradient.sum(0).abs().max() < 1e-9
    assert abs((gradient * student).sum()) < 1e-9
    assert gradient.abs().max() > 1e-3


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_student", [True, False])
@pytest.mark.parametrize("in_teacher", [True, False])
def test_duplicated_samples(function, relation, dtype, in_student, in_teacher):
    student, teacher = random(42, 6, 4).to(dtype), random(43, 6, 7).to(dtype)
    for e, duplicated in [(student, in_student), (teacher, in_teacher)]:
        if duplicated:
            e[3] = e[0]
            e[4] = e[0]
    value, gradient = value_and_gradient(function, student, teacher)
    assert value == pytest.approx(literal(relation, student, teacher), rel=1e-10 if dtype == torch.float64 else 1e-4)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 10


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("point", [0.0, 0.7])
def test_all_samples_equal(function, relation, dtype, point):
    same, other = torch.full((6, 4), point, dtype=dtype), random(44, 6, 7).to(dtype)
    for student, teacher in [(same, other), (other, same), (same, same.clone())]:
        value, gradient = value_and_gradient(function, student, teacher)
        assert value == pytest.approx(literal(relation, student, teacher), rel=1e-4, abs=1e-6)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 10


@BOTH
def test_a_batch_of_one_is_zero(function, relation):
    value, gradient = value_and_gradient(function, random(45, 1, 4), random(46, 1, 7))
    assert value == 0
    assert torch.isfinite(gradient).all()


@BOTH
def test_a_batch_of_two(function, relation):
    # the one distance, divided by itself, is 1; no angle has three different points
    value, gradient = value_and_gradient(function, random(47, 2, 4), random(48, 2, 7))
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-9


@BOTH
@pytest.mark.parametrize("scale", [6e4, 6e-5])
def test_float32_near_the_limits_of_float16(function, relation, scale):
    student, teacher = random(49, 8, 512).float(), random(50, 8, 64).float()
    student, teacher = (scale * e / e.abs().max() for e in (student, teacher))
    value, gradient = value_and_gradient(function, student, teacher)
    assert value == pytest.approx(literal(relation, student, teacher), rel=1e-3)
    assert torch.isfinite(gradient).all()


@BOTH
def test_order_of_the_batch_changes_nothing(function, relation):
    student, teacher = random(51, 6, 4), random(52, 6, 7)
    order = [3, 5, 1, 4, 0, 2]
    expected = function(student, teacher).item()
    assert function(student[order], teacher[order]).item() == pytest.approx(expected, rel=1e-12)

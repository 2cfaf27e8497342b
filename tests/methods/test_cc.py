"""CC against the loss of RepDistiller and the kernel of Peng et al. (2019), written out literally in float64."""

import math
from itertools import pairwise

import pytest
import torch

from kdbench.methods.cc import CC, adjacent_loss, kernel_loss
from kdbench.models.features import Features, Shapes
from tests.helpers.numeric import numeric_gradient, random


def literal_adjacent(student, teacher):
    """1/(B-1) sum_i sum_d |s_i - t_i|_d |s_i+1 - t_i+1|_d."""
    rows = [[abs(a - b) for a, b in zip(s, t, strict=True)] for s, t in zip(student, teacher, strict=True)]
    pairs = pairwise(rows)
    return sum(sum(a * b for a, b in zip(x, y, strict=True)) for x, y in pairs) / (len(rows) - 1)


def literal_kernel(embeddings, gamma, order):
    """k_ij = exp(-2 gamma) sum_{p=0..P} (2 gamma)^p / p! cos_ij^p."""
    rows = [[v / math.sqrt(sum(x**2 for x in row)) for v in row] for row in embeddings]
    return [
        [
            math.exp(-2 * gamma)
            * sum((2 * gamma * sum(x * y for x, y in zip(a, b, strict=True))) ** p / math.factorial(p)
                  for p in range(order + 1))
            for b in rows
        ]
        for a in rows
    ]  # fmt: skip


def literal_kernel_loss(student, teacher, gamma, order):
    """1/B^2 sum_ij (k^s_ij - k^t_ij)^2."""
    k_s, k_t = (literal_kernel(e.tolist(), gamma, order) for e in (student, teacher))
    return sum((a - b) ** 2 for x, y in zip(k_s, k_t, strict=True) for a, b in zip(x, y, strict=True)) / len(k_s) ** 2


def check(function, literal, student, teacher):
    leaf = student.clone().requires_grad_()
    loss = function(leaf, teacher)
    assert loss.item() == pytest.approx(literal(student, teacher), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_adjacent_value_and_gradient():
    check(adjacent_loss, lambda s, t: literal_adjacent(s.tolist(), t.tolist()), random(80, 5, 4), random(81, 5, 4))


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 3), (1.0, 1)])
def test_kernel_value_and_gradient(gamma, order):
    check(
        lambda s, t: kernel_loss(s, t, gamma, order), lambda s, t: literal_kernel_loss(s, t, gamma, order),
        random(82, 5, 4), random(83, 5, 7),
    )  # fmt: skip


def test_the_expansion_approaches_the_gaussian_kernel():
    # exp(-gamma ||a - b||^2) of unit vectors
    student, teacher = random(84, 5, 4), random(85, 5, 7)
    units = [e / e.norm(dim=1, keepdim=True) for e in (student, teacher)]
    k_s, k_t = (torch.exp(-0.4 * (e[:, None] - e[None]).square().sum(2)) for e in units)
    assert kernel_loss(student, teacher, 0.4, 20).item() == pytest.approx((k_s - k_t).square().mean().item(), rel=1e-9)


def test_adjacent_compares_neighbours_in_the_batch_alone():
    # samples 0 and 2 differ, 1 does not: each product has a factor of 0
    student, teacher = torch.zeros(3, 2), torch.tensor([[1.0, 2], [0, 0], [3, 4]])
    assert adjacent_loss(student, teacher).item() == 0
    order = [0, 2, 1]
    assert adjacent_loss(student[order], teacher[order]).item() == pytest.approx((1 * 3 + 2 * 4) / 2)


@pytest.mark.parametrize("function", [adjacent_loss, lambda s, t: kernel_loss(s, t, 0.4, 2)])
def test_equal_empty_and_single_samples(function):
    student = random(86, 5, 4)
    student[1], student[2] = 0, student[0]
    for count in (5, 1):
        leaf, other = student[:count].clone().requires_grad_(), random(87, 5, 4)[:count]
        loss = function(leaf, other)
        loss.backward()
        assert torch.isfinite(loss)
        assert leaf.grad.abs().max() < 100  # dividing by the least allowed norm would make it huge
    assert function(student, student.clone()).item() == 0


def features(seed, width):
    return Features([], random(seed, 6, width).float(), random(seed, 6, 3).float())


def prepared(variant):
    torch.manual_seed(5)
    method = CC(0.02, 8, variant, 0.4, 2)
    method.prepare(Shapes([], 4, 3), Shapes([], 7, 3))
    return method


def test_reference_compares_linear_embeddings_of_both_networks_which_are_trained():
    method, student, teacher = prepared("reference"), features(88, 4), features(89, 7)
    (loss,) = method.losses(student, teacher, None).values()
    weights = [(layer.weight.tolist(), layer.bias.tolist()) for layer in (method.student_embed, method.teacher_embed)]
    embedded = [
        [[sum(w * x for w, x in zip(row, e, strict=True)) + b for row, b in zip(weight, bias, strict=True)] for e in es]
        for (weight, bias), es in zip(weights, (student.embedding.tolist(), teacher.embedding.tolist()), strict=True)
    ]
    assert loss.item() == pytest.approx(0.02 * literal_adjacent(*embedded), rel=1e-5)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    assert sum(p.numel() for p in method.parameters()) == 8 * (4 + 1) + 8 * (7 + 1)


def test_kernel_compares_the_embeddings_themselves():
    method, student, teacher = prepared("kernel"), features(88, 4), features(89, 7)
    (loss,) = method.losses(student, teacher, None).values()
    expected = literal_kernel_loss(student.embedding, teacher.embedding, 0.4, 2)
    assert loss.item() == pytest.approx(0.02 * expected, rel=1e-4)
    assert not list(method.parameters())

"""DIST against the formula of Huang et al. (2022), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.dist import DIST, dist_terms
from kdbench.models.features import Features
from tests.helpers.numeric import numeric_gradient, random, softmax


def pearson(a, b):
    """sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b| + 1e-8) of two lists of numbers."""
    a, b = ([v - sum(x) / len(x) for v in x] for x in (a, b))
    norms = math.sqrt(sum(v**2 for v in a)) * math.sqrt(sum(v**2 for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)


def literal(student, teacher, temperature):
    """T^2 (1 - mean over the samples), T^2 (1 - mean over the classes) of the correlations of the probabilities."""
    p, q = ([softmax(z, temperature) for z in logits.tolist()] for logits in (student, teacher))
    rows = [pearson(*pair) for pair in zip(p, q, strict=True)]
    columns = [pearson(*pair) for pair in zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)]
    return tuple(temperature**2 * (1 - sum(each) / len(each)) for each in (rows, columns))


def features(logits):
    return Features([], logits, logits)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("term", [0, 1], ids=["inter", "intra"])
def test_value_and_gradient(term, temperature):
    student, teacher = 3 * random(60, 6, 5), 3 * random(61, 6, 5)
    leaf = student.clone().requires_grad_()
    loss = dist_terms(leaf, teacher, temperature)[term]
    assert loss.item() == pytest.approx(literal(student, teacher, temperature)[term], rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, temperature)[term], student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_each_term_has_its_weight():
    student, teacher = random(62, 6, 5), random(63, 6, 5)
    inter, intra = literal(student, teacher, 4.0)
    method = DIST(temperature=4.0, inter_weight=3.0, intra_weight=5.0)
    losses = method.losses(features(student), features(teacher), None)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        {"inter": 3 * inter, "intra": 5 * intra}, rel=1e-12
    )
    assert method.label_weight == 1


def test_the_loss_falls_from_opposite_to_equal_outputs():
    # 1 - similarity: a loss that is the similarity itself would rise
    teacher = random(64, 6, 5)
    losses = [[term.item() for term in dist_terms(factor * teacher, teacher, 4.0)] for factor in (-1.0, 0.3, 1.0)]
    for opposite, near, equal in zip(*losses, strict=True):
        assert opposite > 16 > near > equal
        assert equal == pytest.approx(0, abs=1e-4)  # up to the 1e-8 in the denominator


def test_a_step_down_the_gradient_makes_the_outputs_more_alike():
    student, teacher = random(65, 6, 5).requires_grad_(), random(66, 6, 5)
    before = sum(dist_terms(student, teacher, 4.0))
    (gradient,) = torch.autograd.grad(before, student)
    after = student.detach() - 0.05 * gradient
    mean = [sum(pearson(*pair) for pair in zip(z.softmax(1).tolist(), teacher.softmax(1).tolist(), strict=True))
            for z in (student.detach(), after)]  # fmt: skip
    assert mean[1] > mean[0]


def test_the_first_term_compares_classes_within_a_sample_and_the_second_samples_within_a_class():
    # rows that are shifted and scaled correlate perfectly; then the columns do not
    teacher = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
    share = torch.tensor([[0.9], [0.5], [0.1]], dtype=torch.float64)
    student = share * teacher + (1 - share) / 3
    inter, intra = (term.item() for term in dist_terms(student.log(), teacher.log(), 1.0))
    assert inter == pytest.approx(0, abs=1e-5)
    assert intra > 0.01


def test_correlation_is_not_cosine_similarity():
    # without the means taken off, probabilities are all positive and nearly parallel at a high temperature
    student, teacher = random(67, 8, 5), random(68, 8, 5)
    assert dist_terms(student, teacher, 20.0)[0].item() > 100


@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_outputs_without_any_variation_correlate_with_nothing(constant, value):
    logits = {"student": random(69, 7, 3).float(), "teacher": random(70, 7, 3).float()}
    for role in logits:
        if constant in (role, "both"):
            logits[role] = torch.full((7, 3), value)
    student = logits["student"].requires_grad_()
    terms = dist_terms(student, logits["teacher"], 4.0)
    assert [term.item() for term in terms] == pytest.approx([16, 16])
    sum(terms).backward()
    assert (student.grad == 0).all()


def test_equal_samples_have_no_relation_within_a_class():
    # each class has the same probability in all samples, which differs between classes: only rounding is left
    student = random(71, 1, 3).float().repeat(7, 1).requires_grad_()
    intra = dist_terms(student, random(72, 7, 3).float(), 4.0)[1]
    assert intra.item() == pytest.approx(16)
    intra.backward()
    assert (student.grad == 0).all()


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0], [6e4, 6e4, -6e4], [6e4, -6e4, 6e4]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        loss = sum(dist_terms(student, teacher, 1.0))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_order_of_the_batch_changes_nothing_but_the_batch_does():
    student, teacher = random(73, 6, 5), random(74, 6, 5)
    order = [3, 5, 1, 4, 0, 2]
    expected = [term.item() for term in dist_terms(student, teacher, 4.0)]
    assert [t.item() for t in dist_terms(student[order], teacher[order], 4.0)] == pytest.approx(expected, rel=1e-12)
    halves = [dist_terms(student[part], teacher[part], 4.0)[1].item() for part in (slice(3), slice(3, 6))]
    assert sum(halves) / 2 != pytest.approx(expected[1], rel=1e-3)
    assert not DIST.per_sample

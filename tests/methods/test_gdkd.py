"""GDKD against the formula of Zheng & Cheng (2025), written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.gdkd import GDKD, gdkd_terms
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.stages import Progress
from kdbench.models.features import Features, Shapes
from tests.helpers.numeric import numeric_gradient, random, softmax

WEIGHTS = {"partition_weight": 1.0, "top_weight": 2.0, "rest_weight": 8.0}


def divergence(p, q):
    """sum_k p_k log(p_k / q_k)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def literal(student, teacher, top, temperature):
    """T^2/B times the KL between the masses of the two parts, within the teacher's top k, and within the rest."""
    terms = [0.0, 0.0, 0.0]
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        best = sorted(range(len(t)), key=lambda k: -t[k])[:top]
        parts = [best, [k for k in range(len(t)) if k not in best]]
        q, p = softmax(s, temperature), softmax(t, temperature)
        masses_q, masses_p = ([sum(x[k] for k in part) for part in parts] for x in (q, p))
        terms[0] += divergence(masses_p, masses_q)
        for i, part in enumerate(parts):
            terms[1 + i] += divergence([p[k] / masses_p[i] for k in part], [q[k] / masses_q[i] for k in part])
    return [temperature**2 * term / len(student) for term in terms]


def shapes(classes):
    return Shapes([], 8, classes)


def method_of(top=None, warmup_epochs=0, classes=11):
    method = GDKD(temperature=4.0, top=top, warmup_epochs=warmup_epochs, **WEIGHTS)
    method.prepare(shapes(classes), shapes(classes))
    return method


@pytest.fixture
def logits():
    return 3 * random(110, 7, 11), 3 * random(111, 7, 11)


@pytest.mark.parametrize("top", [1, 5, 10])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient(logits, top, temperature):
    student, teacher = logits
    terms = gdkd_terms(student, teacher, top, temperature)
    expected = literal(student, teacher, top, temperature)
    assert [term.item() for term in terms] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for i in range(3):
        leaf = student.clone().requires_grad_()
        gdkd_terms(leaf, teacher, top, temperature)[i].backward()
        gradient = numeric_gradient(lambda x, i=i: literal(x, teacher, top, temperature)[i], student)
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("top", [1, 3])
def test_the_terms_weighted_by_the_teachers_masses_are_kd(top):
    student, teacher = 3 * random(112, 1, 6), 3 * random(113, 1, 6)
    partition, best, rest = gdkd_terms(student, teacher, top, 2.0)
    mass = (teacher / 2).softmax(1).topk(top).values.sum()
    expected = partition + mass * best + (1 - mass) * rest
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_each_term_has_its_weight(logits):
    student, teacher = (Features([], z, z) for z in logits)
    method = method_of(top=3)
    losses = {key: value.item() for key, value in method.losses(student, teacher, None).items()}
    expected = zip(("partition", "top", "rest"), (1.0, 2.0, 8.0), literal(*logits, 3, 4.0), strict=True)
    assert losses == pytest.approx({name: weight * term for name, weight, term in expected}, rel=1e-12)
    assert method.label_weight == 1


def test_the_weight_rises_linearly_over_the_first_epochs(logits):
    student, teacher = (Features([], z, z) for z in logits)
    method, whole = method_of(top=3, warmup_epochs=20), method_of(top=3)
    full = whole.losses(student, teacher, None)["rest"].item()
    for epoch, share in [(0, 1 / 20), (9, 10 / 20), (19, 1.0), (20, 1.0), (239, 1.0)]:
        method.progress = whole.progress = Progress(epoch, 240)
        assert method.losses(student, teacher, None)["rest"].item() == pytest.approx(share * full, rel=1e-9)
        assert whole.losses(student, teacher, None)["rest"].item() == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize(("classes", "top"), [(2, 1), (4, 3), (5, 4), (6, 5), (100, 5)])
def test_by_default_the_top_five_or_all_but_one(classes, top):
    assert method_of(classes=classes).top == top


@pytest.mark.parametrize("top", [10, 11])
def test_a_top_that_leaves_no_rest_is_refused(top):
    with pytest.raises(UserError, match=rf"^gdkd\.top={top} is not allowed with 10 classes: .* 1 to 9$"):
        method_of(top=top, classes=10)


def test_two_classes_leave_the_partition_alone():
    student, teacher = random(114, 6, 2), random(115, 6, 2)
    partition, best, rest = (term.item() for term in gdkd_terms(student, teacher, 1, 4.0))
    assert partition == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-12)
    assert [best, rest] == [0, 0]


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0, 6e4], [-6e4, -6e4, 6e4, -6e4]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        loss = sum(gdkd_terms(student, teacher, 2, 1.0))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

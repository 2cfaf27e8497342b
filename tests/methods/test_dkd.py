"""DKD against the formula of Zhao et al. (2022), written out literally in float64."""

import math

import pytest
import torch

from kdbench.data.batch import Batch, Mixed
from kdbench.errors import UserError
from kdbench.methods.dkd import DKD, dkd_terms
from kdbench.methods.kd import kd_loss
from kdbench.methods.machinery.stages import Progress
from kdbench.models.features import Features, Shapes
from tests.helpers.numeric import numeric_gradient, random, softmax

LABELS = torch.tensor([0, 1, 2, 3, 4, 4])


def literal(student, teacher, labels, temperature):
    """T^2/B times the KL of (p_y, 1 - p_y), and that of the other classes, each divided by 1 - p_y."""
    target = other = 0.0
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        s, t = softmax(z_s, temperature), softmax(z_t, temperature)
        target += t[y] * math.log(t[y] / s[y]) + (1 - t[y]) * math.log((1 - t[y]) / (1 - s[y]))
        for k in range(len(s)):
            if k != y:
                q_t, q_s = t[k] / (1 - t[y]), s[k] / (1 - s[y])
                other += q_t * math.log(q_t / q_s)
    return temperature**2 * target / len(labels), temperature**2 * other / len(labels)


def losses_of(method, student, teacher, labels, mixed=None):
    batch = Batch(torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)), mixed)
    losses = method.losses(Features([], student, student), Features([], teacher, teacher), batch)
    return [losses["target"].item(), losses["other"].item()]


@pytest.fixture
def logits():
    return 3 * random(120, 6, 5), 3 * random(121, 6, 5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("term", [0, 1], ids=["target", "other"])
def test_value_and_gradient(logits, term, temperature):
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    loss = dkd_terms(leaf, teacher, LABELS, temperature)[term]
    assert loss.item() == pytest.approx(literal(student, teacher, LABELS, temperature)[term], rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, LABELS, temperature)[term], student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_the_terms_are_kd_where_the_second_is_weighted_by_what_the_teacher_leaves_to_the_others():
    student, teacher = 3 * random(122, 1, 5), 3 * random(123, 1, 5)  # eq. 7, for one sample
    target, other = dkd_terms(student, teacher, torch.tensor([2]), 2.0)
    rest = 1 - (teacher / 2).softmax(1)[0, 2]
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx((target + rest * other).item(), rel=1e-12)


def test_each_term_has_its_weight_which_rises_over_the_first_epochs(logits):
    method = DKD(temperature=4.0, alpha=2.0, beta=8.0, warmup_epochs=20)
    target, other = literal(*logits, LABELS, 4.0)
    for epoch, share in [(0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)]:
        method.progress = Progress(epoch, 240)
        assert losses_of(method, *logits, LABELS) == pytest.approx([share * 2 * target, share * 8 * other], rel=1e-9)
    constant = DKD(temperature=4.0, alpha=2.0, beta=8.0, warmup_epochs=0)
    assert losses_of(constant, *logits, LABELS) == pytest.approx([2 * target, 8 * other], rel=1e-12)
    assert method.label_weight == 1


def test_two_labels_count_with_their_shares(logits):
    partners = (LABELS + 1) % 5
    method = DKD(temperature=4.0, alpha=1.0, beta=8.0, warmup_epochs=0)
    own, others = (losses_of(method, *logits, labels) for labels in (LABELS, partners))
    mixed = losses_of(method, *logits, LABELS, Mixed(partners, torch.tensor(0.3)))
    assert mixed == pytest.approx([0.3 * a + 0.7 * b for a, b in zip(own, others, strict=True)], rel=1e-6)


def test_of_two_classes_only_the_first_term_is_left():
    student, teacher = random(124, 6, 2), random(125, 6, 2)
    target, other = dkd_terms(student, teacher, LABELS % 2, 4.0)
    assert target.item() == pytest.approx(kd_loss(student, teacher, 4.0).item(), rel=1e-12)
    assert other.item() == 0
    method, shapes = DKD(temperature=4.0, alpha=0.0, beta=8.0, warmup_epochs=0), Shapes([], 8, 2)
    with pytest.raises(UserError, match=r"^dkd\.alpha=0 is not possible with 2 classes, only > 0: "):
        method.prepare(shapes, shapes)
    method.prepare(*2 * (Shapes([], 8, 3),))


def test_saturated_logits_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, 6e4]], requires_grad=True)
    for teacher in (-student.detach(), student.detach().clone()):
        loss = sum(dkd_terms(student, teacher, torch.tensor([1, 0]), 1.0))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

"""RLD against the formula of Sun et al. (2025), written out literally in float64."""

import math

import pytest
import torch

from kdbench.conformance.toys import batch_of
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.rld import confidence_loss, correlation_loss
from tests.helpers.methods import method_of, toy_method
from tests.helpers.numeric import numeric_gradient, random, softmax

LABELS = torch.tensor([0, 1, 2, 3, 4, 4, 2])


def literal_confidence(student, teacher, labels, temperature):
    """T1^2 / B sum_i KL( (max p_i, 1 - max p_i) || (q_iy, 1 - q_iy) ), p of the teacher, q of the student at T1."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = max(softmax(t, temperature)), softmax(s, temperature)[y]
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return temperature**2 * total / len(student)


def literal_correlation(student, teacher, labels, temperature):
    """T^2 / B sum_i KL( p_i || q_i ) of the softmax over the classes that the teacher ranks below the label alone."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        below = [k for k in range(len(t)) if t[k] < t[y]]
        p, q = (softmax([z[k] for k in below], temperature) for z in (t, s))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.fixture
def logits():
    student, teacher = 3 * random(21, 7, 5), 3 * random(22, 7, 5)
    teacher[0, 0] = teacher[0].min() - 1  # the label is ranked last: no class is left
    teacher[1, 1] = teacher[1].max() + 1  # the label is ranked first: all others are left
    teacher[2, 0] = teacher[2, 2]  # a class is on a par with the label
    return student, teacher


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("loss_of", "literal"), [(confidence_loss, literal_confidence), (correlation_loss, literal_correlation)]
)
def test_value_and_gradient(logits, loss_of, literal, temperature):
    student, teacher = logits
    leaf = student.clone().requires_grad_()
    loss = loss_of(leaf, teacher, LABELS, temperature)
    assert loss.item() == pytest.approx(literal(student, teacher, LABELS, temperature), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, LABELS, temperature), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_the_confidence_of_a_wrong_teacher_is_asked_for_the_label_not_for_its_choice():
    teacher = torch.tensor([[5.0, 0.0, 0.0]])
    labels = torch.tensor([1])
    right, wrong = torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0]])
    assert confidence_loss(right, teacher, labels, 1.0).item() == pytest.approx(0, abs=1e-6)
    assert confidence_loss(wrong, teacher, labels, 1.0).item() > 1


def test_what_the_student_thinks_of_the_classes_above_the_label_does_not_matter(logits):
    student, teacher = logits
    masked = teacher >= teacher.gather(1, LABELS[:, None])
    assert masked.sum(1).tolist()[:2] == [5, 1]
    changed = torch.where(masked, student + 7, student)
    expected = correlation_loss(student, teacher, LABELS, 4.0).item()
    assert correlation_loss(changed, teacher, LABELS, 4.0).item() == pytest.approx(expected, rel=1e-12)
    student.requires_grad_()
    correlation_loss(student, teacher, LABELS, 4.0).backward()
    assert (student.grad[masked] == 0).all()


def test_no_class_left_or_only_one_is_zero_without_a_gradient():
    student = random(23, 2, 3).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    loss = correlation_loss(student, teacher, torch.tensor([0, 1]), 4.0)
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_for_a_teacher_that_is_right_the_two_terms_are_kd(logits):
    # KL = KL of (p_y, 1 - p_y) + (1 - p_y) KL among the others, for one sample at one temperature
    student, teacher = (z[1:2] for z in logits)
    labels = LABELS[1:2]
    rest = 1 - (teacher / 2).softmax(1)[0, 1]
    terms = confidence_loss(student, teacher, labels, 2.0) + rest * correlation_loss(student, teacher, labels, 2.0)
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(terms.item(), rel=1e-12)


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("scale", [6e4, -6e4])
def test_saturated_logits_are_finite(label, scale):
    student = torch.tensor([[scale, -scale, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-6e4, 6e4, 0.0]])
    labels = torch.tensor([label])
    loss = confidence_loss(student, teacher, labels, 1.0) + correlation_loss(student, teacher, labels, 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_the_terms_are_weighted_and_warmed_up():
    overrides = ["alpha=3", "beta=5", "temperature=4", "label_temperature=2", "warmup_epochs=4"]
    method, batch = method_of("rld", *(f"method.{override}" for override in overrides)), batch_of()
    student, teacher = (features.logits.detach().double() for features in method.forward_both(batch))
    confidence = literal_confidence(student, teacher, batch.labels, 2.0)
    correlation = literal_correlation(student, teacher, batch.labels, 4.0)
    for epoch, share in enumerate([0.25, 0.5]):
        method.enter_epoch(epoch)
        losses = method.batch_losses(batch)
        assert losses["confidence"].item() == pytest.approx(share * 3 * confidence, rel=1e-3)
        assert losses["correlation"].item() == pytest.approx(share * 5 * correlation, rel=1e-3)
        assert losses["ce"].item() == pytest.approx(method.label_loss(student.float(), batch).item(), rel=1e-4)


def test_with_two_classes_only_the_confidence_is_left():
    losses = toy_method("rld", classes=2).batch_losses(batch_of(6, classes=2))
    assert losses["correlation"].item() == 0
    assert losses["confidence"].item() > 0
    with pytest.raises(UserError, match=r"rld\.alpha=0 is not possible with 2 classes"):
        toy_method("rld", "method.alpha=0", classes=2)

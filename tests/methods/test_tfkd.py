"""Teacher-free KD (Yuan et al., CVPR 2020) and its virtual teacher, written out literally in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.methods.kd import kd_loss
from kdbench.methods.tfkd import TfKDReg, TfKDSelf, regularisation_loss, virtual_teacher
from kdbench.models.features import Features
from tests.helpers.methods import Toy, method_of
from tests.helpers.numeric import random, softmax

LABELS = torch.tensor([0, 4, 2, 2, 1, 0])
REG = {"temperature": 20.0, "alpha": 0.1, "multiplier": 100.0, "correct": 0.99, "target": "softmax",
       "student_temperature": "one", "reduction": "mean"}  # fmt: skip


def random_logits(seed, classes=5, count=6):
    return 3 * random(seed, count, classes)


def features(logits):
    return Features([], torch.zeros(len(logits), 3), logits)


def batch(labels=LABELS):
    return Batch(torch.zeros(len(labels), 1, 2, 2), labels, torch.arange(len(labels)))


def teacher_row(label, classes, correct, temperature, target):
    """v_y = a, (1 - a) / (K - 1) elsewhere; softmax(v / T), v^(1/T) / sum, or v."""
    v = [correct if k == label else (1 - correct) / (classes - 1) for k in range(classes)]
    if target == "raw":
        return v
    if target == "softmax":
        return softmax(v, temperature)
    powers = [x ** (1 / temperature) for x in v]
    return [x / sum(powers) for x in powers]


def literal(logits, target, temperature):
    """sum_i sum_k t_ik (log t_ik - log softmax(z_i / T)_k)."""
    total = 0.0
    for row, t in zip(logits.tolist(), target.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z / temperature) for z in row))
        total += sum(tk * (math.log(tk) - z / temperature + log_sum) for tk, z in zip(t, row, strict=True))
    return total


# ------------------------------------------------------------------------------------ the virtual teacher


@pytest.mark.parametrize("target", ["softmax", "tempered", "raw"])
@pytest.mark.parametrize(("classes", "temperature", "correct"), [(5, 20.0, 0.99), (100, 40.0, 0.9), (2, 1.0, 0.99)])
def test_virtual_teacher(classes, temperature, correct, target):
    labels = LABELS % classes
    probabilities = virtual_teacher(labels, classes, correct, temperature, target)
    expected = torch.tensor([teacher_row(y, classes, correct, temperature, target) for y in labels.tolist()])
    assert probabilities.shape == (6, classes)
    torch.testing.assert_close(probabilities.float(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(probabilities.sum(1).float(), torch.ones(6))


def test_virtual_teacher_of_the_authors_code_is_almost_uniform():
    row = virtual_teacher(torch.tensor([7]), 100, 0.99, 20.0, "softmax")[0]
    assert row[7].item() == pytest.approx(0.01050, abs=5e-6)
    assert row[8].item() == pytest.approx(0.009995, abs=5e-7)


def test_tempered_at_one_is_raw():
    tempered, raw = (virtual_teacher(LABELS, 5, 0.99, 1.0, target) for target in ("tempered", "raw"))
    torch.testing.assert_close(tempered, raw)


# ------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize(("reduction", "count"), [("mean", 6 * 5), ("batchmean", 6)])
def test_value_and_gradient(temperature, reduction, count):
    logits, target = random_logits(1).requires_grad_(), random_logits(2).softmax(1)
    loss = regularisation_loss(logits, target, temperature, reduction)
    assert loss.item() == pytest.approx(literal(logits, target, temperature) / count, abs=1e-12, rel=1e-12)
    loss.backward()
    # d/dz_ik = (softmax(z_i / T)_k - t_ik) / T, over B K or B
    expected = ((logits.detach() / temperature).softmax(1) - target) / temperature / count
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_zero_where_the_student_predicts_the_target():
    logits = random_logits(1)
    assert regularisation_loss(logits, (logits / 4).softmax(1), 4.0, "batchmean").item() == pytest.approx(0, abs=1e-12)


def test_a_one_hot_target_gives_the_cross_entropy():
    # 0 log 0 = 0: KL(onehot || p) is the cross-entropy
    logits = random_logits(1).requires_grad_()
    loss = regularisation_loss(logits, F.one_hot(LABELS, 5).double(), 1.0, "batchmean")
    expected = F.cross_entropy(logits, LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(x, [logits]) for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_saturated_logits_are_finite(reduction):
    logits = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    for target in ("softmax", "tempered", "raw"):
        loss = regularisation_loss(logits, virtual_teacher(torch.tensor([1]), 3, 0.99, 20.0, target), 1.0, reduction)
        logits.grad = None
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


# --------------------------------------------------------------------------------------------- the methods


@pytest.mark.parametrize("target", ["softmax", "tempered", "raw"])
@pytest.mark.parametrize(("student_temperature", "at"), [("one", 1.0), ("same", 20.0)])
@pytest.mark.parametrize(("reduction", "count"), [("mean", 6 * 5), ("batchmean", 6)])
def test_reg_is_alpha_times_multiplier_times_the_divergence(target, student_temperature, at, reduction, count):
    changes = {"target": target, "student_temperature": student_temperature, "reduction": reduction}
    method = TfKDReg(**REG | changes | {"multiplier": 50.0})
    assert method.label_weight == pytest.approx(0.9)
    logits = random_logits(1)
    losses = method.losses(features(logits), batch())
    v = torch.tensor([teacher_row(y, 5, 0.99, 20.0, target) for y in LABELS.tolist()], dtype=torch.float64)
    assert list(losses) == ["tfkd_reg"]
    assert losses["tfkd_reg"].item() == pytest.approx(0.1 * 50 * literal(logits, v, at) / count, rel=1e-5)


@pytest.mark.parametrize(
    ("alpha", "temperature", "multiplier", "published"),
    [(0.1, 20.0, 100.0, 0.10), (0.95, 40.0, 1.0, 0.16), (0.1, 40.0, 50.0, 0.053)],
    ids=["resnet18", "mobilenetv2", "googlenet"],
)
def test_reg_of_the_authors_code_is_label_smoothing(alpha, temperature, multiplier, published, in_float64):
    # L = (1 - alpha) CE + alpha m / K * KL(t || p), t almost uniform: its gradient is that of label smoothing with
    # epsilon = (alpha m / K) / w, times w = 1 - alpha + alpha m / K (which is 1 for ResNet18)
    labels = torch.arange(8)
    share = alpha * multiplier / 100
    w = 1 - alpha + share
    epsilon = share / w
    assert epsilon == pytest.approx(published, abs=1e-3)
    changes = {"alpha": alpha, "temperature": temperature, "multiplier": multiplier}
    overrides = [f"method.{key}={value}" for key, value in changes.items()]
    method = method_of("tfkd_reg", *overrides, student=Toy(features(random_logits(1, classes=100, count=8))))
    logits = method.student.logits

    def gradient_of_smoothing(epsilon):
        (gradient,) = torch.autograd.grad(w * F.cross_entropy(logits, labels, label_smoothing=epsilon), logits)
        return gradient

    (gradient,) = torch.autograd.grad(sum(method.batch_losses(batch(labels)).values()), logits)
    # the remaining difference is epsilon w (1 / K - t): 5e-4 epsilon w / B on the label
    torch.testing.assert_close(gradient, gradient_of_smoothing(epsilon), rtol=0, atol=6e-4 * epsilon * w / 8)
    difference, other = (gradient - gradient_of_smoothing(e) for e in (epsilon, 0.9 * epsilon))
    assert difference.norm() < 0.01 * other.norm()


@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1 / 5), ("batchmean", 1)])
@pytest.mark.parametrize("temperature", [1.0, 6.0])
def test_self_is_kd_with_its_own_weight(temperature, reduction, scale):
    method = TfKDSelf(temperature=temperature, alpha=0.95, multiplier=50.0, reduction=reduction)
    assert method.label_weight == pytest.approx(0.05)
    student, teacher = random_logits(1).requires_grad_(), random_logits(2)
    losses = method.losses(features(student), features(teacher), batch())
    assert list(losses) == ["kd"]
    weight = 0.95 * 50 * temperature**2 * scale / 6
    p = (teacher / temperature).softmax(1)
    assert losses["kd"].item() == pytest.approx(weight * literal(student, p, temperature), rel=1e-12)
    losses["kd"].backward()
    expected = weight * ((student.detach() / temperature).softmax(1) - p) / temperature
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)


def test_self_can_be_hintons():
    # alpha m / K = 0.9 with the element mean is alpha 0.9 with the mean over the batch
    student, teacher = random_logits(1), random_logits(2)
    method = TfKDSelf(temperature=4.0, alpha=0.9, multiplier=5.0, reduction="mean")
    loss = method.losses(features(student), features(teacher), batch())["kd"]
    assert loss.item() == pytest.approx(0.9 * kd_loss(student, teacher, 4.0).item(), rel=1e-12)


def test_saturated_teachers_are_finite():
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    method = TfKDSelf(temperature=1.0, alpha=0.95, multiplier=1.0, reduction="mean")
    loss = method.losses(features(student), features(-student.detach()), batch(torch.tensor([1])))["kd"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()

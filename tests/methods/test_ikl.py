"""IKL and GKL against the formulas of Cui et al. (2024, 2026), written out literally in float64."""

import math

import pytest
import torch

from kdbench.conformance.toys import batch_of
from kdbench.methods.ikl import gkl_weights, ikl_weights, wmse_loss
from kdbench.methods.kd import kd_loss, soft_cross_entropy
from tests.helpers.methods import method_of
from tests.helpers.numeric import numeric_gradient, random, softmax


def literal(student, teacher, weights, normalised):
    """1/4 sum_i sum_jk w_ij w_ik [(t_ij - t_ik) - (s_ij - s_ik)]^2, over B or over sum_i sum_jk w_ij w_ik."""
    total = mass = 0.0
    for s, t, w in zip(student.tolist(), teacher.tolist(), weights, strict=True):
        for j in range(len(s)):
            for k in range(len(s)):
                total += w[j] * w[k] * ((t[j] - t[k]) - (s[j] - s[k])) ** 2
                mass += w[j] * w[k]
    return total / 4 / (mass if normalised else len(student))


def literal_weights(teacher, temperature, gamma=1.0):
    """softmax(t / T2)^gamma of each sample."""
    return [[p**gamma for p in softmax(row, temperature)] for row in teacher.tolist()]


def literal_soft(student, teacher, temperature):
    """- 1/B sum_i sum_k p_ik log q_ik, p and q the softmax of teacher and student at T."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total -= sum(p * math.log(q) for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True))
    return total / len(student)


@pytest.fixture
def logits():
    return 3 * random(11, 6, 5), 3 * random(12, 6, 5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_value_and_gradient_of_ikl(logits, temperature):
    student, teacher = logits
    weights = literal_weights(teacher, temperature)
    leaf = student.clone().requires_grad_()
    loss = wmse_loss(leaf, teacher, ikl_weights(teacher, temperature))
    assert loss.item() == pytest.approx(literal(student, teacher, weights, normalised=False), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, weights, normalised=False), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("gamma", [0.05, 0.3, 1.0, 2.0])
def test_value_and_gradient_of_gkl(logits, gamma):
    student, teacher = logits
    weights = literal_weights(teacher, 4.0, gamma)
    leaf = student.clone().requires_grad_()
    loss = wmse_loss(leaf, teacher, gkl_weights(teacher, 4.0, gamma))
    assert loss.item() == pytest.approx(literal(student, teacher, weights, normalised=True), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, weights, normalised=True), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_gkl_is_ikl_where_gamma_is_1(logits):
    student, teacher = logits
    expected = wmse_loss(student, teacher, ikl_weights(teacher, 4.0)).item()
    assert wmse_loss(student, teacher, gkl_weights(teacher, 4.0, 1.0)).item() == pytest.approx(expected, rel=1e-12)


def test_gamma_zero_weights_all_pairs_evenly(logits):
    student, teacher = logits
    difference = teacher - student
    expected = (difference[:, :, None] - difference[:, None, :]).square().mean().item() / 4
    assert wmse_loss(student, teacher, gkl_weights(teacher, 4.0, 0.0)).item() == pytest.approx(expected, rel=1e-12)


def test_the_weighted_squares_are_kl_to_second_order():
    # KL(p || q) of close outputs is 1/4 sum_jk p_j p_k (d_j - d_k)^2, d the difference of the logits
    teacher = random(13, 4, 5)
    student = teacher + 1e-4 * random(14, 4, 5)
    expected = kd_loss(student, teacher, 1.0).item()
    assert wmse_loss(student, teacher, ikl_weights(teacher, 1.0)).item() == pytest.approx(expected, rel=1e-3)


def test_a_shift_of_all_logits_of_a_sample_changes_nothing(logits):
    student, teacher = logits
    weights = gkl_weights(teacher, 4.0, 0.3)
    expected = wmse_loss(student, teacher, weights).item()
    assert wmse_loss(student + random(15, 6, 1), teacher, weights).item() == pytest.approx(expected, rel=1e-9)


def test_memory_is_that_of_the_logits_even_for_many_classes():
    # B K^2 numbers would be 20 GB
    student, teacher = (random(seed, 50, 10_000).float() for seed in (16, 17))
    assert torch.isfinite(wmse_loss(student, teacher, gkl_weights(teacher, 4.0, 0.3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_logits_are_finite(dtype):
    student = torch.tensor([[6e4, -6e4, 0.0]], dtype=dtype).float().requires_grad_()
    teacher = torch.tensor([[-6e4, 6e4, 0.0]], dtype=dtype).float()
    for weights in (ikl_weights(teacher, 1.0), gkl_weights(teacher, 4.0, 0.05), gkl_weights(teacher, 4.0, 2.0)):
        loss = wmse_loss(student, teacher, weights)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("name", "gamma", "normalised"), [("ikl", 1.0, False), ("gkl", 0.3, True)])
def test_the_losses_are_weighted_as_in_the_paper_and_warmed_up(name, gamma, normalised):
    overrides = ["alpha=3", "beta=7", "temperature=2", "weight_temperature=5", "warmup_epochs=4"]
    method, batch = method_of(name, *(f"method.{override}" for override in overrides)), batch_of()
    student, teacher = (features.logits.detach().double() for features in method.forward_both(batch))
    squares = literal(student, teacher, literal_weights(teacher, 5.0, gamma), normalised)
    soft = literal_soft(student, teacher, 2.0)  # without T^2
    assert soft_cross_entropy(student, teacher, 2.0).mean().item() == pytest.approx(soft, rel=1e-12)
    for epoch, share in enumerate([0.25, 0.5]):
        method.enter_epoch(epoch)
        losses = method.batch_losses(batch)
        assert losses["wmse"].item() == pytest.approx(share * 7 * squares, rel=1e-3)
        assert losses["soft"].item() == pytest.approx(share * 3 * soft, rel=1e-4)
        assert losses["ce"].item() == pytest.approx(method.label_loss(student.float(), batch).item(), rel=1e-4)


def test_without_a_warm_up_the_weights_are_whole_from_the_start():
    method, batch = method_of("ikl", "method.warmup_epochs=0"), batch_of()
    student, teacher = (features.logits for features in method.forward_both(batch))
    expected = soft_cross_entropy(student, teacher, 4.0).mean()
    torch.testing.assert_close(method.batch_losses(batch)["soft"], expected)

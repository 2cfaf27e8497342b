"""LW-KD: discriminator and adversarial losses, written out literally in float64; which update changes which network."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.methods.lwkd import Bank, Discriminator, discriminator_loss, generator_loss
from tests.helpers.methods import Toy, batch_of, features_of, fit, method_of, total
from tests.helpers.numeric import random

# ------------------------------------------------------------------------------------------------ the game


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_non_saturating_generator():
    """- 1 / B * sum_i log s(d_i), with the gradient (s(d_i) - 1) / B."""
    scores = (3 * random(1, 7)).requires_grad_()
    loss = generator_loss(scores, "non_saturating")
    ds = scores.tolist()
    assert loss.item() == pytest.approx(-sum(math.log(sigmoid(d)) for d in ds) / 7, abs=1e-12, rel=1e-12)
    loss.backward()
    assert scores.grad.tolist() == pytest.approx([(sigmoid(d) - 1) / 7 for d in ds], abs=1e-12)


def test_minimax_generator():
    """1 / B * sum_i log(1 - s(d_i)), with the gradient - s(d_i) / B."""
    scores = (3 * random(1, 7)).requires_grad_()
    loss = generator_loss(scores, "minimax")
    ds = scores.tolist()
    assert loss.item() == pytest.approx(sum(math.log(1 - sigmoid(d)) for d in ds) / 7, abs=1e-12, rel=1e-10)
    loss.backward()
    assert scores.grad.tolist() == pytest.approx([-sigmoid(d) / 7 for d in ds], abs=1e-12)


def test_discriminator_loss():
    """- 1 / B * sum_i log s(r_i) - 1 / B * sum_i log(1 - s(f_i)), with the gradients (s(r_i) - 1) / B, s(f_i) / B."""
    real, fake = ((3 * random(seed, 7)).requires_grad_() for seed in (1, 9))
    loss = discriminator_loss(real, fake)
    rs, fs = real.tolist(), fake.tolist()
    expected = -sum(math.log(sigmoid(r)) for r in rs) / 7 - sum(math.log(1 - sigmoid(f)) for f in fs) / 7
    assert loss.item() == pytest.approx(expected, abs=1e-12, rel=1e-10)
    loss.backward()
    assert real.grad.tolist() == pytest.approx([(sigmoid(r) - 1) / 7 for r in rs], abs=1e-12)
    assert fake.grad.tolist() == pytest.approx([sigmoid(f) / 7 for f in fs], abs=1e-12)


def test_both_games_pull_towards_real():
    scores = random(1, 7).requires_grad_()
    for game in ("non_saturating", "minimax"):
        (gradient,) = torch.autograd.grad(generator_loss(scores, game), scores)
        assert (gradient < 0).all()


def test_loss_of_an_undecided_discriminator_is_two_log_two():
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_saturated_scores_are_finite():
    scores = torch.tensor([6e4, -6e4, 0.0], requires_grad=True)
    losses = generator_loss(scores, "non_saturating"), generator_loss(scores, "minimax")
    for loss in (*losses, discriminator_loss(scores, scores)):
        (gradient,) = torch.autograd.grad(loss, scores)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------- discriminator


@pytest.mark.parametrize("conditional", [False, True])
def test_discriminator_has_three_layers(conditional):
    """W_3 g(W_2 g(W_1 x + b_1) + b_2) + b_3, g the leaky ReLU, x = p or [p, onehot(y)]."""
    torch.manual_seed(0)
    net = Discriminator(5, conditional).double()
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(128, 10 if conditional else 5), (64, 128), (1, 64)]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for layer in layers for p in layer.parameters())
    (slope,) = {module.negative_slope for module in net.modules() if isinstance(module, nn.LeakyReLU)}
    assert slope > 0
    probabilities, labels = random(1, 6, 5).softmax(1), torch.tensor([0, 4, 2, 2, 1, 0])
    x = torch.cat([probabilities, torch.eye(5, dtype=torch.float64)[labels]], 1) if conditional else probabilities
    for layer in layers[:2]:
        x = x @ layer.weight.T + layer.bias
        x = torch.where(x > 0, x, slope * x)
    expected = (x @ layers[2].weight.T + layers[2].bias)[:, 0]
    scores = net(probabilities, labels)
    assert scores.shape == (6,)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
def test_only_a_conditional_discriminator_sees_the_label(conditional):
    torch.manual_seed(0)
    net, probabilities = Discriminator(5, conditional).double(), random(1, 6, 5).softmax(1)
    first, second = (net(probabilities, torch.full((6,), label)) for label in (0, 3))
    assert torch.equal(first, second) == (not conditional)


# ---------------------------------------------------------------------------------------------- the method


def lwkd(*overrides, student=None, scale=3.0):
    """The method with a bank of 20 rows, fixed pairing, temperature 4 and beta 0.5."""
    options = ["method.temperature=4.0", "method.beta=0.5", "method.pairing=fixed"]
    method = method_of("lwkd", *options, *overrides, student=student)
    method.bank = Bank.of(scale * random(1, 20, 4).float(), torch.arange(20) % 4, "instance", False)
    return method


def losses_of_updates(method, batch):
    """The sums of the losses of both updates, computed in order."""
    return [total(update.losses(batch)) for update in method.updates()]


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("game", ["non_saturating", "minimax"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("reduction", "count"), [("batchmean", 8), ("mean", 8 * 4)])
def test_updates_minimise_the_formula(game, conditional, reduction, count, in_float64):
    """(1 - alpha) CE + alpha T^2 KL(p_t || p_s) + beta L_adv(D(p_s)), and -log D(p_t) - log(1 - D(p_s))."""
    options = {"game": game, "conditional": conditional, "reduction": reduction}
    method = lwkd(*(f"method.{key}={value}" for key, value in options.items())).double()
    batch = batch_of(dtype=torch.float64)
    student_loss, discriminator_loss = losses_of_updates(method, batch)
    logits = method.student(batch.images).logits
    target = method.bank.draw(batch.labels, batch.index, "fixed")
    q, p = (logits / 4).softmax(1), (target / 4).softmax(1)
    real, fake = (method.discriminator(x, batch.labels).sigmoid() for x in (p, q))
    adversarial = -fake.log().mean() if game == "non_saturating" else (1 - fake).log().mean()
    expected = (
        0.3 * F.cross_entropy(logits, batch.labels)
        + 0.7 * 16 * (p * (p.log() - q.log())).sum() / count
        + 0.5 * adversarial
    )
    assert student_loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(student_loss, expected, method.student)
    expected = -real.log().mean() - (1 - fake).log().mean()
    assert discriminator_loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(discriminator_loss, expected, method.discriminator)


def assert_same_gradients(loss, expected, module):
    gradients = (torch.autograd.grad(x, list(module.parameters()), retain_graph=True) for x in (loss, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_each_optimiser_has_its_own_parameters():
    method = lwkd()
    optimizers, _ = method.configure_optimizers()
    optimised = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    assert optimised == [{id(p) for p in net.parameters()} for net in (method.student, method.discriminator)]
    assert method.updates()[1].recipe["lr"] == 0.001


def test_the_discriminators_update_gives_the_student_no_gradient():
    method = lwkd()
    losses_of_updates(method, batch_of())[1].backward()
    assert all(p.grad is None for p in method.student.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.discriminator.parameters())


def test_the_students_gradients_do_not_change_the_discriminators_update():
    def discriminator_after_update(student_first):
        method = lwkd()
        (_, optimizer), _ = method.configure_optimizers()
        first, second = method.updates()
        loss = total(first.losses(batch_of()))
        if student_first:
            loss.backward()
            assert any(p.grad.abs().sum() > 0 for p in method.student.parameters())
        before, loss = copies(method.student), total(second.losses(batch_of()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True))
        return copies(method.discriminator)

    start = copies(lwkd().discriminator)
    alone, after_student = discriminator_after_update(False), discriminator_after_update(True)
    assert all(torch.equal(a, b) for a, b in zip(alone, after_student, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, alone, strict=True))


def trained(lr, beta):
    """Parameters of student and discriminator after a training."""
    method = lwkd(f"method.beta={beta}", f"method.discriminator.lr={lr}")
    torch.manual_seed(0)
    fit(method)
    return copies(method.student), copies(method.discriminator)


def test_the_discriminator_affects_the_student_only_by_the_adversarial_term():
    (slow, first), (fast, second) = (trained(lr, beta=0.0) for lr in (1e-6, 0.05))
    assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (slow, _), (fast, _) = (trained(lr, beta=0.5) for lr in (1e-6, 0.05))
    assert not all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("game", ["non_saturating", "minimax"])
def test_saturated_logits_are_finite(game):
    student = Toy(features_of(8, 4, 1, scale=6e4))
    method = lwkd("method.temperature=1.0", f"method.game={game}", student=student, scale=6e4)
    for loss in losses_of_updates(method, batch_of()):
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)

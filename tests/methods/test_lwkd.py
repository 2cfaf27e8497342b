"""LW-KD: discriminator, adversarial losses and bank of soft targets, literally in float64; who is updated by what."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.methods.lwkd import LWKD, Bank, Discriminator, discriminator_loss, generator_loss
from kdbench.models.build import build
from tests.helpers.methods import SIZES, Toy, batch_of, features_of, fit, options

OWN = {"temperature": 4.0, "alpha": 0.7, "beta": 0.5, "reduction": "batchmean", "game": "non_saturating",
       "conditional": False, "discriminator": {"lr": 0.001}, "pairing": "fixed", "targets": "instance",
       "correct_only": False, "synthetic": {}}  # fmt: skip


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ the game


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_non_saturating_generator():
    """- 1 / B * sum_i log s(d_i), with the gradient (s(d_i) - 1) / B."""
    scores = (3 * random(7)).requires_grad_()
    loss = generator_loss(scores, "non_saturating")
    each = scores.tolist()
    assert loss.item() == pytest.approx(-sum(math.log(sigmoid(d)) for d in each) / 7, abs=1e-12, rel=1e-12)
    loss.backward()
    assert scores.grad.tolist() == pytest.approx([(sigmoid(d) - 1) / 7 for d in each], abs=1e-12)


def test_minimax_generator():
    """1 / B * sum_i log(1 - s(d_i)), with the gradient - s(d_i) / B."""
    scores = (3 * random(7)).requires_grad_()
    loss = generator_loss(scores, "minimax")
    each = scores.tolist()
    assert loss.item() == pytest.approx(sum(math.log(1 - sigmoid(d)) for d in each) / 7, abs=1e-12, rel=1e-10)
    loss.backward()
    assert scores.grad.tolist() == pytest.approx([-sigmoid(d) / 7 for d in each], abs=1e-12)


def test_discriminator_loss():
    """- 1 / B * sum_i log s(r_i) - 1 / B * sum_i log(1 - s(f_i)), with the gradients (s(r_i) - 1) / B, s(f_i) / B."""
    real, fake = ((3 * random(7, seed=seed)).requires_grad_() for seed in (1, 9))
    loss = discriminator_loss(real, fake)
    rs, fs = real.tolist(), fake.tolist()
    expected = -sum(math.log(sigmoid(r)) for r in rs) / 7 - sum(math.log(1 - sigmoid(f)) for f in fs) / 7
    assert loss.item() == pytest.approx(expected, abs=1e-12, rel=1e-10)
    loss.backward()
    assert real.grad.tolist() == pytest.approx([(sigmoid(r) - 1) / 7 for r in rs], abs=1e-12)
    assert fake.grad.tolist() == pytest.approx([sigmoid(f) / 7 for f in fs], abs=1e-12)


def test_both_games_pull_towards_real():
    scores = random(7).requires_grad_()
    for game in ("non_saturating", "minimax"):
        (grad,) = torch.autograd.grad(generator_loss(scores, game), scores)
        assert (grad < 0).all()


def test_an_undecided_discriminator_is_at_two_log_two():
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_saturated_scores_are_finite():
    scores = torch.tensor([6e4, -6e4, 0.0], requires_grad=True)
    losses = generator_loss(scores, "non_saturating"), generator_loss(scores, "minimax")
    for loss in (*losses, discriminator_loss(scores, scores)):
        (grad,) = torch.autograd.grad(loss, scores)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


# ------------------------------------------------------------------------------------------- discriminator


@pytest.mark.parametrize("conditional", [False, True])
def test_discriminator_is_three_layers(conditional):
    """W_3 g(W_2 g(W_1 x + b_1) + b_2) + b_3, g the leaky ReLU, x = p or [p, onehot(y)]."""
    torch.manual_seed(0)
    net = Discriminator(5, conditional).double()
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(128, 10 if conditional else 5), (64, 128), (1, 64)]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for layer in layers for p in layer.parameters())
    (slope,) = {module.negative_slope for module in net.modules() if isinstance(module, nn.LeakyReLU)}
    assert slope > 0
    probabilities, labels = random(6, 5).softmax(1), torch.tensor([0, 4, 2, 2, 1, 0])
    x = torch.cat([probabilities, torch.eye(5, dtype=torch.float64)[labels]], 1) if conditional else probabilities
    for layer in layers[:2]:
        x = x @ layer.weight.T + layer.bias
        x = torch.where(x > 0, x, slope * x)
    expected = (x @ layers[2].weight.T + layers[2].bias)[:, 0]
    made = net(probabilities, labels)
    assert made.shape == (6,)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
def test_only_a_conditional_discriminator_knows_the_label(conditional):
    torch.manual_seed(0)
    net, probabilities = Discriminator(5, conditional).double(), random(6, 5).softmax(1)
    first, second = (net(probabilities, torch.full((6,), label)) for label in (0, 3))
    assert torch.equal(first, second) == (not conditional)


# ---------------------------------------------------------------------------------------------------- bank

ROWS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 3, 2])  # labels of a bank


def bank():
    return Bank(random(9, 4), ROWS)


def rows(drawn, logits):
    """The number of each drawn row in the bank."""
    found = (drawn[:, None] == logits[None]).all(2)
    assert (found.sum(1) == 1).all()
    return found.long().argmax(1)


@pytest.mark.parametrize("pairing", ["resampled", "fixed"])
def test_draws_rows_of_the_same_label_and_each_of_them(pairing):
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    made = rows(bank().draw(labels, torch.randperm(400), pairing), random(9, 4))
    assert torch.equal(ROWS[made], labels)
    assert sorted(set(made.tolist())) == list(range(9))


def test_resampled_is_uniform_within_the_class_and_differs_each_time():
    torch.manual_seed(0)
    made, labels, index = bank(), torch.full((4000,), 2), torch.arange(4000)
    first, second = (rows(made.draw(labels, index, "resampled"), random(9, 4)) for _ in range(2))
    assert not torch.equal(first, second)
    counts = Counter(first.tolist())
    assert sorted(counts) == [0, 4, 5, 8]
    assert all(850 < count < 1150 for count in counts.values())  # 1000 +- 27
    torch.manual_seed(0)
    assert torch.equal(rows(bank().draw(labels, index, "resampled"), random(9, 4)), first)


def test_fixed_draws_every_row_where_the_labels_go_round():
    # index = label mod K: the row must not hang on the remainder of the index
    index = torch.arange(2000)
    made = rows(bank().draw(index % 4, index, "fixed"), random(9, 4))
    counts = Counter(made[index % 4 == 2].tolist())
    assert sorted(counts) == [0, 4, 5, 8]
    assert all(75 < count < 175 for count in counts.values())  # 125 of 500


def test_fixed_depends_on_the_sample_alone():
    labels, index = torch.arange(40) % 4, torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    whole = bank().draw(labels, index, "fixed")
    torch.manual_seed(1)
    again, order = bank(), torch.randperm(40)
    assert torch.equal(again.draw(labels[order], index[order], "fixed"), whole[order])
    assert torch.equal(again.draw(labels[3:5], index[3:5], "fixed"), whole[3:5])


@pytest.mark.parametrize("pairing", ["resampled", "fixed"])
def test_drawing_needs_no_values(pairing):
    labels = torch.zeros(5, dtype=torch.long, device="meta")
    drawn = bank().to("meta").draw(labels, torch.zeros_like(labels), pairing)
    assert (drawn.device.type, drawn.shape) == ("meta", (5, 4))


def test_bank_is_no_parameter():
    assert not list(bank().parameters())


def reachable(made, label):
    """The different rows a bank has for a label, sorted."""
    torch.manual_seed(0)
    drawn = made.draw(torch.full((500,), label), torch.arange(500), "resampled")
    return sorted(set(map(tuple, drawn.tolist())))


# rows whose argmax is the label, by class: class 0 one of two, class 1 both, class 2 none of two
MADE = torch.tensor(
    [[3, 1, 0], [1, 2, 0], [0, 5, 1], [0, 1, 0], [4, 1, 0], [0, 1, 0.5]], dtype=torch.float64
)  # fmt: skip
OF = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("targets", "correct_only", "expected"),
    [
        ("instance", False, [[(1, 2, 0), (3, 1, 0)], [(0, 1, 0), (0, 5, 1)], [(0, 1, 0.5), (4, 1, 0)]]),
        ("instance", True, [[(3, 1, 0)], [(0, 1, 0), (0, 5, 1)], [(0, 1, 0.5), (4, 1, 0)]]),
        ("class_mean", False, [[(2, 1.5, 0)], [(0, 3, 0.5)], [(2, 1, 0.25)]]),
        ("class_mean", True, [[(3, 1, 0)], [(0, 3, 0.5)], [(2, 1, 0.25)]]),
    ],
)
def test_bank_of_instances_or_classes_all_or_correct(targets, correct_only, expected):
    order = torch.tensor([4, 0, 3, 1, 5, 2])
    made = Bank.of(MADE[order], OF[order], targets, correct_only)
    assert [reachable(made, label) for label in range(3)] == expected


# ---------------------------------------------------------------------------------------------- the method


def lwkd(student=None, scale=3.0, **changes):
    """The method on a small network, with a bank of 20 rows."""
    torch.manual_seed(0)
    student = student or build("resnet8", **SIZES)
    method = LWKD(**OWN | changes)
    method.bank = Bank.of(scale * random(20, 4).float(), torch.arange(20) % 4, "instance", False)
    return method.attach(student, None, None, options("ce")["recipe"])


def critic(method):
    (found,) = (module for module in method.modules() if isinstance(module, Discriminator))
    return found


def total(terms):
    return torch.stack(list(terms.values())).sum()


def turns(method, batch):
    """The losses of both turns, made in order."""
    return [total(turn.terms(batch)) for turn in method.turns()]


def copies(parameters):
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("game", ["non_saturating", "minimax"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("reduction", "count"), [("batchmean", 8), ("mean", 8 * 4)])
def test_turns_are_the_formula(game, conditional, reduction, count, monkeypatch):
    """(1 - alpha) CE + alpha T^2 KL(p_t || p_s) + beta L_adv(D(p_s)), and -log D(p_t) - log(1 - D(p_s))."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.is_floating_point() else x.double())
    method = lwkd(game=game, conditional=conditional, reduction=reduction).double()
    batch = batch_of()._replace(images=batch_of().images.double())
    own, discriminator = list(method.student.parameters()), critic(method)
    made = turns(method, batch)
    logits = method.student(batch.images).logits
    target = method.bank.draw(batch.labels, batch.index, "fixed")
    q, p = (logits / 4).softmax(1), (target / 4).softmax(1)
    real, fake = discriminator(p, batch.labels).sigmoid(), discriminator(q, batch.labels).sigmoid()
    adversarial = -fake.log().mean() if game == "non_saturating" else (1 - fake).log().mean()
    expected = (
        0.3 * F.cross_entropy(logits, batch.labels)
        + 0.7 * 16 * (p * (p.log() - q.log())).sum() / count
        + 0.5 * adversarial
    )
    assert made[0].item() == pytest.approx(expected.item(), rel=1e-10)
    for a, b in zip(*(torch.autograd.grad(x, own, retain_graph=True) for x in (made[0], expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    known = -real.log().mean() - (1 - fake).log().mean()
    assert made[1].item() == pytest.approx(known.item(), rel=1e-10)
    theirs = list(discriminator.parameters())
    for a, b in zip(*(torch.autograd.grad(x, theirs) for x in (made[1], known)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_each_optimiser_has_its_own_parameters():
    method = lwkd()
    optimizers, _ = method.configure_optimizers()
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    assert held == [{id(p) for p in net.parameters()} for net in (method.student, critic(method))]
    assert method.turns()[1].recipe["lr"] == 0.001


def test_the_turn_of_the_discriminator_gives_the_student_no_gradient():
    method = lwkd()
    turns(method, batch_of())[1].backward()
    assert all(p.grad is None for p in method.student.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic(method).parameters())


def test_the_turn_of_the_student_leaves_the_discriminators_step_as_it_is():
    def step(student_first):
        method = lwkd()
        (_, optimizer), _ = method.configure_optimizers()
        first, second = method.turns()
        loss = total(first.terms(batch_of()))
        if student_first:
            loss.backward()
            assert any(p.grad.abs().sum() > 0 for p in method.student.parameters())
        before, loss = copies(method.student.parameters()), total(second.terms(batch_of()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True))
        return copies(critic(method).parameters())

    start, alone, after = copies(critic(lwkd()).parameters()), step(False), step(True)
    assert all(torch.equal(a, b) for a, b in zip(alone, after, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, alone, strict=True))


def trained(rate, beta):
    method = lwkd(beta=beta, discriminator={"lr": rate})
    torch.manual_seed(0)
    fit(method)
    return copies(method.student.parameters()), copies(critic(method).parameters())


def test_without_the_adversarial_term_the_discriminator_changes_nothing():
    (slow, first), (fast, second) = (trained(rate, beta=0.0) for rate in (1e-6, 0.05))
    assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_with_the_adversarial_term_it_does():
    (slow, _), (fast, _) = (trained(rate, beta=0.5) for rate in (1e-6, 0.05))
    assert not all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("game", ["non_saturating", "minimax"])
def test_saturated_logits_are_finite(game):
    method = lwkd(Toy(features_of(8, 4, 1, scale=6e4)), scale=6e4, temperature=1.0, game=game)
    for loss in turns(method, batch_of()):
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)

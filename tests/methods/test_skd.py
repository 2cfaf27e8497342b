"""SKD: the simplifier against attention written out literally in float64, and the method as a whole."""

import copy
import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.skd import Simplifier
from kdbench.models.features import Features
from tests.helpers.methods import batch_of, method_of, total, toy_method
from tests.helpers.numeric import random


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def normalised(u):
    """Each row with mean 0 and variance 1 (biased, 1e-5 added)."""
    centred = u - u.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def literal_simplified(simplifier, logits, heads, softening):
    """u + W_o [A_1 V_1, ..., A_h V_h], A_h = softmax(Q_h K_h^T / sqrt(d)), Q, K, V of u = z / softening, normalised."""
    u = logits / softening
    q, k, v = (linear(layer, normalised(u)) for layer in (simplifier.q, simplifier.k, simplifier.v))
    d = q.shape[1] // heads
    rows = []
    for i in range(len(u)):
        parts = []
        for h in range(heads):
            head = slice(h * d, (h + 1) * d)
            scores = torch.stack([(q[i, head] * k[j, head]).sum() / math.sqrt(d) for j in range(len(u))])
            weights = scores.exp() / scores.exp().sum()
            parts.append(sum(weights[j] * v[j, head] for j in range(len(u))))
        rows.append(torch.cat(parts))
    return u + linear(simplifier.out, torch.stack(rows))


def randomised(simplifier, scale=0.5):
    """The simplifier with an output projection that is not zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in simplifier.out.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return simplifier


def simplifier_of(width=8, heads=2, softening=3.0, classes=5):
    torch.manual_seed(0)
    return Simplifier(classes, width, heads, softening).double()


@pytest.fixture
def logits():
    return 3 * random(1, 7, 5)


# ------------------------------------------------------------------------------------------ the simplifier


@pytest.mark.parametrize("softening", [1.0, 3.0])
def test_starts_as_the_softened_logits(logits, softening):
    assert torch.equal(simplifier_of(softening=softening)(logits), logits / softening)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (8, 2), (6, 3), (4, 4)])
@pytest.mark.parametrize("softening", [1.0, 3.0])
def test_is_attention_over_the_batch(logits, width, heads, softening):
    simplifier = randomised(simplifier_of(width, heads, softening))
    expected = literal_simplified(simplifier, logits, heads, softening)
    torch.testing.assert_close(simplifier(logits), expected, rtol=0, atol=1e-12)
    weight, parameters = random(5, 7, 5), list(simplifier.parameters())
    gradients, expected = (
        torch.autograd.grad((weight * z).sum(), parameters) for z in (simplifier(logits), expected)
    )  # fmt: skip
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_sample_attends_to_itself(logits):
    simplifier, one = randomised(simplifier_of()), logits[:1]
    u = one / 3.0
    expected = u + linear(simplifier.out, linear(simplifier.v, normalised(u)))
    torch.testing.assert_close(simplifier(one), expected, rtol=0, atol=1e-12)


def test_the_order_of_the_batch_does_not_matter(logits):
    simplifier, order = randomised(simplifier_of()), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(simplifier(logits[order]), simplifier(logits)[order], rtol=0, atol=1e-12)


def gradient_size(module):
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


def test_gradient_reaches_the_output_first_and_then_the_attention(logits):
    simplifier, student = simplifier_of(), torch.randn(7, 5, dtype=torch.float64)
    attention = (simplifier.q, simplifier.k, simplifier.v)
    kd_loss(student, simplifier(logits), 4.0).backward()
    assert gradient_size(simplifier.out) > 0
    assert [gradient_size(layer) for layer in attention] == [0, 0, 0]
    simplifier.zero_grad()
    kd_loss(student, randomised(simplifier)(logits), 4.0).backward()
    assert all(gradient_size(layer) > 0 for layer in (*attention, simplifier.out))


# ---------------------------------------------------------------------------------------------- the method

BATCH = batch_of(dtype=torch.float64)


def skd(**options):
    """The method with two heads of width 4, temperature 4 and alpha 0.9."""
    options = {"width": 8, "heads": 2, **options}
    return method_of("skd", *(f"method.{key}={value}" for key, value in options.items()))


def divergence(p, q):
    """KL(p || q), mean over the batch."""
    return (p * (p.log() - q.log())).sum(1).mean()


def test_the_first_step_is_that_of_kd(in_float64):
    method, kd = skd(softening=1.0).double(), method_of("kd").double()
    assert method.label_weight == kd.label_weight
    loss, expected = total(method.batch_losses(BATCH)), total(kd.batch_losses(BATCH))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    loss.backward()
    expected.backward()
    for a, b in zip(method.student.parameters(), kd.student.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("softening", [1.0, 2.5])
def test_losses_and_their_gradient(softening, anchor, in_float64):
    method = skd(softening=softening, anchor=anchor).double()
    simplifier = randomised(method.simplifier)
    parameters = [*method.student.parameters(), *simplifier.parameters()]
    assert {id(p) for p in method.parameters()} == {id(p) for p in parameters}
    losses = method.batch_losses(BATCH)
    assert ("anchor" in losses) == (anchor > 0)

    student, teacher = (features.logits for features in method.forward_both(BATCH))
    raw, simplified = teacher / softening, literal_simplified(simplifier, teacher, 2, softening)
    q, p, r = ((z / 4).softmax(1) for z in (student, simplified, raw))
    anchor_loss = anchor * 16 * divergence(r, p)
    expected = -0.1 * student.log_softmax(1)[torch.arange(8), BATCH.labels].mean() + 0.9 * 16 * divergence(p, q)
    expected = expected + anchor_loss
    if anchor:
        assert losses["anchor"].item() == pytest.approx(anchor_loss.item(), rel=1e-12)
    assert total(losses).item() == pytest.approx(expected.item(), rel=1e-12)
    gradients, expected = (torch.autograd.grad(loss, parameters) for loss in (total(losses), expected))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_student_trains_the_simplifier_and_nothing_trains_the_teacher():
    method = skd()
    total(method.batch_losses(batch_of())).backward()
    assert gradient_size(method.simplifier.out) > 0
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())


def test_anchor_trains_the_simplifier_alone(in_float64):
    method = skd(anchor=0.7).double()
    anchor = method.batch_losses(BATCH)["anchor"]
    assert anchor.item() == pytest.approx(0, abs=1e-12)  # nothing has moved before the first step
    randomised(method.simplifier)
    method.batch_losses(BATCH)["anchor"].backward()
    assert gradient_size(method.simplifier) > 0
    assert all(p.grad is None for p in [*method.student.parameters(), *method.teacher.parameters()])


def test_only_the_teachers_logits_are_transformed():
    method = skd(softening=2.5).double()
    randomised(method.simplifier)
    stages, embedding, logits = [random(1, 8, 2, 4, 4)], random(4, 8, 3), random(2, 8, 4)
    transformed = method.transform_teacher(Features(stages, embedding, logits), BATCH)
    assert isinstance(transformed, Features)
    assert [torch.equal(a, b) for a, b in zip(transformed.stages, stages, strict=True)] == [True]
    assert torch.equal(transformed.embedding, embedding)
    expected = literal_simplified(method.simplifier, logits, 2, 2.5)
    torch.testing.assert_close(transformed.logits, expected, rtol=0, atol=1e-12)


def agreement(a, b):
    return sum(x == y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / len(a)


def test_watched_values(in_float64):
    method = skd(softening=2.5).double()
    randomised(method.simplifier, scale=0.1)
    with torch.no_grad():
        raw = method.teacher(BATCH.images).logits / 2.5
        simplified = literal_simplified(method.simplifier, raw * 2.5, 2, 2.5)
    r, p = (raw / 4).softmax(1), (simplified / 4).softmax(1)
    method.batch_losses(BATCH)
    assert all(value.shape == () and not value.requires_grad for value in method.watched.values())
    assert {name: value.item() for name, value in method.watched.items()} == pytest.approx({
        "kl_to_raw": divergence(r, p).item(),
        "entropy": -(p * p.log()).sum(1).mean().item(),
        "agreement": agreement(r.argmax(1), p.argmax(1)),
        "accuracy": agreement(p.argmax(1), BATCH.labels),
    }, rel=1e-10)  # fmt: skip


def test_watched_values_at_the_start(in_float64):
    method = skd().double()
    method.batch_losses(BATCH)
    assert method.watched["kl_to_raw"].item() == pytest.approx(0, abs=1e-12)
    assert method.watched["agreement"].item() == 1


@pytest.mark.parametrize(("share", "warns"), [(0.49, True), (0.5, False)])
def test_warns_when_the_targets_have_moved_away(share, warns):
    warning = skd().warning({"agreement": share, "entropy": 0.1})
    assert ("only 49% of the images" in warning) if warns else warning is None


def test_width_is_divided_among_the_heads():
    with pytest.raises(UserError, match="heads"):
        skd(width=6, heads=4)


def test_simplifier_is_trained_and_not_exported():
    method = skd()
    assert method.extra_parameters() == sum(p.numel() for p in method.simplifier.parameters()) > 0
    assert method.export().keys() == method.student.net.state_dict().keys()


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_saturated_logits_are_finite(anchor):
    method = toy_method("skd", "method.temperature=1.0", f"method.anchor={anchor}", scale=6e4)
    trained = copy.deepcopy(method)
    randomised(trained.simplifier)
    for state in (method, trained):
        loss = total(state.batch_losses(batch_of(6)))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(value) for value in state.watched.values())
        assert all(torch.isfinite(p.grad).all() for p in state.parameters() if p.grad is not None)


def test_simplifier_has_a_learning_rate_of_its_own():
    method = skd()
    (optimizer,), (schedule,) = method.configure_optimizers()
    student, simplifier = optimizer.param_groups
    assert simplifier["lr"] == pytest.approx(0.1 * student["lr"])
    assert {id(p) for p in simplifier["params"]} == {id(p) for p in method.simplifier.parameters()}
    assert not {id(p) for p in student["params"]} & {id(p) for p in simplifier["params"]}
    for _ in range(method.total_epochs):
        optimizer.step()
        schedule.step()
    assert simplifier["lr"] == pytest.approx(0.1 * student["lr"])

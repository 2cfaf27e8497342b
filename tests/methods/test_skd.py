"""SKD: the simplifier against attention written out literally in float64, and the method as a whole."""

import copy
import math

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.methods.kd import KD, kd_loss
from kdbench.methods.skd import SKD, Simplifier
from kdbench.models.build import build
from kdbench.models.features import Features
from tests.helpers.methods import SIZES, Toy, batch_of, features_of, options

OWN = {"temperature": 4.0, "alpha": 0.9, "softening": 1.0, "width": 8, "heads": 2, "lr": 0.1, "anchor": 0.0}


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def normalised(u):
    """Each row at mean 0 and variance 1 (biased, 1e-5 added)."""
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
            own = slice(h * d, (h + 1) * d)
            scores = torch.stack([(q[i, own] * k[j, own]).sum() / math.sqrt(d) for j in range(len(u))])
            share = scores.exp() / scores.exp().sum()
            parts.append(sum(share[j] * v[j, own] for j in range(len(u))))
        rows.append(torch.cat(parts))
    return u + linear(simplifier.out, torch.stack(rows))


def randomised(module, seed=3, scale=0.5):
    """The module with an output projection that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.out.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def simplifier_of(width=8, heads=2, softening=3.0, classes=5):
    torch.manual_seed(0)
    return Simplifier(classes, width, heads, softening).double()


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)


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
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    made, known = (
        torch.autograd.grad((weight * z).sum(), list(simplifier.parameters()))
        for z in (simplifier(logits), expected)
    )  # fmt: skip
    for a, b in zip(made, known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_sample_attends_to_itself(logits):
    simplifier, one = randomised(simplifier_of()), logits[:1]
    u = one / 3.0
    expected = u + linear(simplifier.out, linear(simplifier.v, normalised(u)))
    torch.testing.assert_close(simplifier(one), expected, rtol=0, atol=1e-12)


def test_the_order_of_the_batch_does_not_matter(logits):
    simplifier, order = randomised(simplifier_of()), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(simplifier(logits[order]), simplifier(logits)[order], rtol=0, atol=1e-12)


def size(module):
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


def test_gradient_reaches_the_output_first_and_then_the_attention(logits):
    simplifier, student = simplifier_of(), torch.randn(7, 5, dtype=torch.float64)
    attention = (simplifier.q, simplifier.k, simplifier.v)
    kd_loss(student, simplifier(logits), 4.0).backward()
    assert size(simplifier.out) > 0
    assert [size(layer) for layer in attention] == [0, 0, 0]
    simplifier.zero_grad()
    kd_loss(student, randomised(simplifier)(logits), 4.0).backward()
    assert all(size(layer) > 0 for layer in (*attention, simplifier.out))


# ---------------------------------------------------------------------------------------------- the method


def networks():
    torch.manual_seed(0)
    return build("resnet8", **SIZES), build("resnet14", **SIZES)


def attached(method):
    return method.attach(*networks(), None, options("kd")["recipe"])


@pytest.fixture
def doubled(monkeypatch):
    """`doubled(**changes)`: the method with its networks, all in float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.is_floating_point() else x.double())
    return lambda **changes: attached(SKD(**OWN | changes)).double()


def batch():
    found = batch_of()
    return found._replace(images=found.images.double())


def inner(method):
    (simplifier,) = (module for module in method.modules() if isinstance(module, Simplifier))
    return simplifier


def total(terms):
    return torch.stack(list(terms.values())).sum()


def divergence(p, q):
    """KL(p || q), mean over the batch."""
    return (p * (p.log() - q.log())).sum(1).mean()


def test_step_zero_is_kds(doubled):
    skd = doubled(softening=1.0)
    kd = attached(KD(temperature=4.0, alpha=0.9)).double()
    assert skd.label_weight == kd.label_weight
    made, known = total(skd.terms(batch())), total(kd.terms(batch()))
    assert made.item() == pytest.approx(known.item(), rel=1e-14)
    made.backward()
    known.backward()
    for a, b in zip(skd.student.parameters(), kd.student.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("softening", [1.0, 2.5])
def test_terms_and_their_gradient(doubled, softening, anchor):
    method = doubled(softening=softening, anchor=anchor)
    simplifier = randomised(inner(method))
    parameters = [*method.student.parameters(), *simplifier.parameters()]
    assert {id(p) for p in method.parameters()} == {id(p) for p in parameters}
    terms = method.terms(batch())
    assert ("anchor" in terms) == (anchor > 0)

    student, teacher = (features.logits for features in method.forwards(batch().images))
    raw, simple = teacher / softening, literal_simplified(simplifier, teacher, 2, softening)
    q, p, r = ((z / 4).softmax(1) for z in (student, simple, raw))
    labels = batch().labels
    expected = -0.1 * student.log_softmax(1)[torch.arange(8), labels].mean() + 0.9 * 16 * divergence(p, q)
    pull = anchor * 16 * divergence(r, p)
    if anchor:
        assert terms["anchor"].item() == pytest.approx(pull.item(), rel=1e-12)
    assert total(terms).item() == pytest.approx((expected + pull).item(), rel=1e-12)
    made, known = (torch.autograd.grad(loss, parameters) for loss in (total(terms), expected + pull))
    for a, b in zip(made, known, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_simplifier_learns_from_the_student_and_the_teacher_from_nobody(doubled):
    method = doubled()
    total(method.terms(batch())).backward()
    assert size(inner(method).out) > 0
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())


def test_anchor_holds_the_simplifier_alone(doubled):
    method = doubled(anchor=0.7)
    anchor = method.terms(batch())["anchor"]
    assert anchor.item() == pytest.approx(0, abs=1e-12)  # before the first step nothing is moved
    randomised(inner(method))
    method.terms(batch())["anchor"].backward()
    assert size(inner(method)) > 0
    assert all(p.grad is None for p in [*method.student.parameters(), *method.teacher.parameters()])


def test_transform_replaces_the_logits_only(doubled):
    method = doubled(softening=2.5)
    randomised(inner(method))
    generator = torch.Generator().manual_seed(2)
    stages, embedding = [torch.rand(8, 2, 4, 4).double()], torch.rand(8, 3).double()
    logits = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    made = method.transform(Features(stages, embedding, logits), batch())
    assert isinstance(made, Features)
    assert [torch.equal(a, b) for a, b in zip(made.stages, stages, strict=True)] == [True]
    assert torch.equal(made.embedding, embedding)
    torch.testing.assert_close(made.logits, literal_simplified(inner(method), logits, 2, 2.5), rtol=0, atol=1e-12)


def test_notes(doubled):
    method = doubled(softening=2.5)
    randomised(inner(method), scale=0.1)
    labels = batch().labels
    with torch.no_grad():
        raw = method.teacher(batch().images).logits / 2.5
        simple = literal_simplified(inner(method), raw * 2.5, 2, 2.5)
    r, p = (raw / 4).softmax(1), (simple / 4).softmax(1)
    method.terms(batch())
    assert all(note.shape == () and not note.requires_grad for note in method.notes.values())
    assert {name: note.item() for name, note in method.notes.items()} == pytest.approx({
        "kl_to_raw": divergence(r, p).item(),
        "entropy": -(p * p.log()).sum(1).mean().item(),
        "agreement": sum(a == b for a, b in zip(r.argmax(1).tolist(), p.argmax(1).tolist(), strict=True)) / 8,
        "accuracy": sum(a == b for a, b in zip(p.argmax(1).tolist(), labels.tolist(), strict=True)) / 8,
    }, rel=1e-10)  # fmt: skip


def test_notes_at_the_start(doubled):
    method = doubled()
    method.terms(batch())
    assert method.notes["kl_to_raw"].item() == pytest.approx(0, abs=1e-12)
    assert method.notes["agreement"].item() == 1


def test_width_is_divided_among_the_heads():
    with pytest.raises(UserError, match="heads"):
        attached(SKD(**OWN | {"width": 6, "heads": 4}))


def test_simplifier_is_trained_and_not_exported():
    method = attached(SKD(**OWN))
    assert isinstance(inner(method), nn.Module)
    assert method.extra_parameters() == sum(p.numel() for p in inner(method).parameters()) > 0
    assert method.export().keys() == method.student.net.state_dict().keys()


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_saturated_logits_are_finite(anchor):
    nets = (Toy(features_of(6, 4, seed, scale=6e4)) for seed in (1, 2))
    method = SKD(**OWN | {"temperature": 1.0, "anchor": anchor}).attach(*nets, None, options("kd")["recipe"])
    found = batch_of(6)
    for made in (method, copy.deepcopy(method)):
        loss = total(made.terms(found))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(note) for note in made.notes.values())
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
        randomised(inner(method))


def test_simplifier_has_a_learning_rate_of_its_own():
    method = attached(SKD(**OWN))
    (optimizer,), (schedule,) = method.configure_optimizers()
    student, simplifier = optimizer.param_groups
    assert simplifier["lr"] == pytest.approx(0.1 * student["lr"])
    assert {id(p) for p in simplifier["params"]} == {id(p) for p in method.simplifier.parameters()}
    assert not {id(p) for p in student["params"]} & {id(p) for p in simplifier["params"]}
    for _ in range(method.epochs):
        optimizer.step()
        schedule.step()
    assert simplifier["lr"] == pytest.approx(0.1 * student["lr"])

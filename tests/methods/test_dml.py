"""DML against the formula of Zhang et al. (CVPR 2018), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.dml import mutual_loss
from kdbench.methods.kd import kd_loss


def literal(logits, k, temperature):
    """T^2 / (K - 1) sum_{l != k} 1/B sum_i sum_c p_l,ic log(p_l,ic / p_k,ic), p the softmax at T."""
    p = [(z / temperature).softmax(1).tolist() for z in logits]
    total = 0.0
    for other in range(len(logits)):
        if other != k:
            for q, r in zip(p[k], p[other], strict=True):
                total += sum(a * math.log(a / b) for a, b in zip(r, q, strict=True))
    return temperature**2 * total / len(p[k]) / (len(logits) - 1)


def literal_gradient(logits, k, temperature):
    """d/dz_k = T / B / (K - 1) sum_{l != k} (p_k - p_l)."""
    p = [(z / temperature).softmax(1) for z in logits]
    others = [p[k] - q for other, q in enumerate(p) if other != k]
    return temperature / len(p[k]) / len(others) * sum(others)


def peers(count):
    generator = torch.Generator().manual_seed(1)
    return [(3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(count)]


def detached(logits):
    return [z.detach() for z in logits]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("count", "k"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_value_and_gradient(count, k, temperature):
    logits = peers(count)
    loss = mutual_loss(logits, k, temperature)
    assert loss.item() == pytest.approx(literal(detached(logits), k, temperature), abs=1e-12, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(logits[k].grad, literal_gradient(detached(logits), k, temperature), rtol=0, atol=1e-12)
    for other in set(range(count)) - {k}:
        assert logits[other].grad is None or not logits[other].grad.any()


def test_the_sum_over_peers_gives_each_peer_its_own_gradient():
    logits = peers(3)
    sum(mutual_loss(logits, k, 1.0) for k in range(3)).backward()
    for k in range(3):
        torch.testing.assert_close(logits[k].grad, literal_gradient(detached(logits), k, 1.0), rtol=0, atol=1e-12)


def test_two_peers_are_each_others_teacher():
    a, b = detached(peers(2))
    assert mutual_loss([a, b], 0, 2.0).item() == pytest.approx(kd_loss(a, b, 2.0).item(), abs=1e-12)
    assert mutual_loss([a, b], 1, 2.0).item() == pytest.approx(kd_loss(b, a, 2.0).item(), abs=1e-12)


def test_zero_for_equal_logits_up_to_a_shift():
    z = detached(peers(1))[0]
    assert mutual_loss([z, z + 5.0, z - 3.0], 1, 1.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_saturated_logits_are_finite(k):
    rows = [[6e4, -6e4, 0.0], [-6e4, 6e4, 0.0], [0.0, 0.0, 6e4]]
    logits = [torch.tensor([row], requires_grad=True) for row in rows]
    loss = mutual_loss(logits, k, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits[k].grad).all()

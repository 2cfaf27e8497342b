"""ONE against the formulas of Lan et al. (NeurIPS 2018), written out literally in float64."""

import math

import pytest
import torch

from kdbench.methods.one import Gate, consistency, ensemble, ramp
from tests.helpers.numeric import random


def has_no_gradient(tensor):
    return tensor.grad is None or not tensor.grad.any()


# ------------------------------------------------------------------------------------------- gate


def random_gate(channels, branches):
    """A gate in float64 with random parameters and statistics."""
    gate = Gate(channels, branches).double()
    with torch.no_grad():
        for seed, tensor in enumerate([gate.fc.weight, gate.fc.bias, gate.norm.weight, gate.norm.bias]):
            tensor.copy_(random(seed, *tensor.shape))
        gate.norm.running_mean.copy_(random(4, branches))
        gate.norm.running_var.copy_(random(5, branches).exp())
    return gate


def literal_gate(gate, maps, training):
    """softmax(relu(norm(fc(mean of the map)))); the norm uses statistics of the batch in training, else its own."""
    weight, bias = gate.fc.weight.tolist(), gate.fc.bias.tolist()
    height, width = maps.shape[2:]
    pooled = [[sum(map(sum, plane)) / (height * width) for plane in sample] for sample in maps.tolist()]
    rows = [[sum(w * x for w, x in zip(ws, xs, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
            for xs in pooled]  # fmt: skip
    for i in range(len(bias)):
        column = [row[i] for row in rows]
        mean = sum(column) / len(column) if training else gate.norm.running_mean[i].item()
        squares = sum((v - mean) ** 2 for v in column) / len(column)
        var = squares if training else gate.norm.running_var[i].item()
        for row in rows:
            scaled = (row[i] - mean) / math.sqrt(var + gate.norm.eps)
            row[i] = math.exp(max(scaled * gate.norm.weight[i].item() + gate.norm.bias[i].item(), 0))
    return torch.tensor([[v / sum(row) for v in row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16)])
def test_gate(size, training):
    gate, maps = random_gate(4, 3).train(training), random(6, 6, 4, *size)
    expected = literal_gate(gate, maps, training)
    assert not expected.allclose(torch.full_like(expected, 1 / 3))
    weights = gate(maps)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gate_below_zero_is_uniform():
    # because of the ReLU before the softmax
    gate = random_gate(4, 3).eval()
    gate.norm.bias.data.fill_(-1e3)
    torch.testing.assert_close(gate(random(7, 6, 4, 2, 2)), torch.full((6, 3), 1 / 3, dtype=torch.float64))


# ------------------------------------------------------------------------------------------- ensemble


def test_ensemble():
    # z_e,bk = sum_i g_bi z_i,bk
    branches, weights = [random(seed, 5, 4) for seed in range(3)], random(3, 5, 3).softmax(1)
    expected = [
        [sum(weights[b, i].item() * branches[i][b, k].item() for i in range(3)) for k in range(4)] for b in range(5)
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ensemble(branches, weights), expected, rtol=0, atol=1e-12)


def test_ensemble_trains_gate_and_branches():
    # d z_e,bk / d z_i,bk = g_bi and d z_e,bk / d g_bi = z_i,bk
    branches = [random(seed, 5, 4).requires_grad_() for seed in range(3)]
    weights = random(3, 5, 3).softmax(1).requires_grad_()
    ensemble(branches, weights).sum().backward()
    for i, branch in enumerate(branches):
        torch.testing.assert_close(branch.grad, weights.detach()[:, i : i + 1].expand(5, 4), rtol=0, atol=1e-12)
        torch.testing.assert_close(weights.grad[:, i], branch.detach().sum(1), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------- consistency


def literal(branches, teacher, temperature):
    """T^2 sum_i 1/B sum_b sum_k p_e,bk log(p_e,bk / p_i,bk), p the softmax at T."""
    pe, total = (teacher / temperature).softmax(1).tolist(), 0.0
    for branch in branches:
        for e, i in zip(pe, (branch / temperature).softmax(1).tolist(), strict=True):
            total += sum(a * math.log(a / b) for a, b in zip(e, i, strict=True))
    return temperature**2 * total / len(pe)


def literal_gradient(branch, teacher, temperature):
    """d/dz_i = T / B (p_i - p_e)."""
    return temperature / len(branch) * ((branch / temperature).softmax(1) - (teacher / temperature).softmax(1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 3])
def test_value_and_gradient(count, temperature):
    branches = [(3 * random(seed, 7, 11)).requires_grad_() for seed in range(count)]
    teacher = (3 * random(9, 7, 11)).requires_grad_()
    loss = consistency(branches, teacher, temperature)
    expected = literal([b.detach() for b in branches], teacher.detach(), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-12, rel=1e-12)
    loss.backward()
    for branch in branches:
        expected = literal_gradient(branch.detach(), teacher.detach(), temperature)
        torch.testing.assert_close(branch.grad, expected, rtol=0, atol=1e-12)
    assert has_no_gradient(teacher)


def test_consistency_trains_branches_alone():
    branches = [random(seed, 7, 11).requires_grad_() for seed in range(3)]
    weights = random(3, 7, 3).softmax(1).requires_grad_()
    teacher = ensemble(branches, weights)
    consistency(branches, teacher, 3.0).backward()
    assert has_no_gradient(weights)
    for branch in branches:  # no gradient flows through the ensemble either
        expected = literal_gradient(branch.detach(), teacher.detach(), 3.0)
        torch.testing.assert_close(branch.grad, expected, rtol=0, atol=1e-12)


def test_zero_for_equal_branches_up_to_a_shift():
    z = random(1, 7, 11)
    assert consistency([z, z + 5.0, z - 3.0], z, 3.0).item() == pytest.approx(0, abs=1e-12)


def test_saturated_logits_are_finite():
    rows = [[6e4, -6e4, 0.0], [-6e4, 6e4, 0.0], [0.0, 0.0, 6e4]]
    branches = [torch.tensor([row], requires_grad=True) for row in rows]
    loss = consistency(branches, torch.tensor([[-6e4, 0.0, 6e4]]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(branch.grad).all() for branch in branches)


# ------------------------------------------------------------------------------------------- ramp


@pytest.mark.parametrize(
    ("epoch", "value"), [(0, math.exp(-5)), (20, math.exp(-5 * 0.75**2)), (40, math.exp(-1.25)), (80, 1), (200, 1)]
)
def test_ramp(epoch, value):
    assert ramp(epoch, 80.0) == pytest.approx(value, abs=1e-12)


def test_ramp_at_known_values():
    assert [round(ramp(epoch, 80.0), 4) for epoch in (0, 40, 80)] == [0.0067, 0.2865, 1]


def test_ramp_of_a_length_between_epochs():
    assert ramp(2, 2.5) == pytest.approx(math.exp(-5 * 0.2**2), abs=1e-12)
    assert ramp(3, 2.5) == 1


def test_without_a_ramp_the_weight_is_one():
    assert [ramp(epoch, 0.0) for epoch in (0, 1, 100)] == [1, 1, 1]

"""SRRL against the formulas of Yang et al. (2021), written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.srrl import connector, srrl_losses
from tests.helpers.methods import SIZES, Toy, batch_of, features_of, method_of
from tests.helpers.numeric import numeric_gradient, random


def literal(student, teacher, logits, weight, bias):
    """1/(B D) sum_b ||r_b - e_b||^2 and 1/(B K) sum_bk (w_k r_b + c_k - z_bk)^2, of connected embeddings r."""
    features, outputs = 0.0, 0.0
    for r, e, z in zip(student.tolist(), teacher.tolist(), logits.tolist(), strict=True):
        features += sum((a - b) ** 2 for a, b in zip(r, e, strict=True))
        for w, c, target in zip(weight.tolist(), bias.tolist(), z, strict=True):
            outputs += (sum(a * b for a, b in zip(w, r, strict=True)) + c - target) ** 2
    return features / teacher.numel(), outputs / logits.numel()


def test_values_and_gradients():
    student, teacher, logits = random(1, 6, 5), random(2, 6, 5), random(3, 6, 4)
    weight, bias = random(4, 4, 5), random(5, 4)
    for part in (0, 1):
        leaf = student.clone().requires_grad_()
        loss = srrl_losses(leaf, teacher, logits, weight, bias)[part]
        assert loss.item() == pytest.approx(literal(student, teacher, logits, weight, bias)[part], rel=1e-12)
        loss.backward()
        expected = numeric_gradient(lambda x, part=part: literal(x, teacher, logits, weight, bias)[part], student)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("relu", [True, False])
def test_the_connector_equals_its_formula(relu):
    """relu(gamma (W x - mean) / sqrt(var + eps) + beta), statistics over the batch."""
    torch.manual_seed(6)
    module = connector(3, 4, relu).double().train()
    torch.nn.init.normal_(module[1].weight)
    torch.nn.init.normal_(module[1].bias)
    x = random(7, 5, 3)
    columns = [
        [sum(w * v for w, v in zip(row, e, strict=True)) for e in x.tolist()] for row in module[0].weight.tolist()
    ]
    out = []
    for column, gamma, beta in zip(columns, module[1].weight.tolist(), module[1].bias.tolist(), strict=True):
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        out.append([gamma * (v - mean) / math.sqrt(variance + module[1].eps) + beta for v in column])
    expected = torch.tensor(out, dtype=torch.float64).T
    torch.testing.assert_close(module(x), expected.clamp(min=0) if relu else expected, rtol=1e-10, atol=1e-12)


def test_the_losses_use_the_frozen_classifier_of_the_teacher():
    method, batch = method_of("srrl"), batch_of()
    student, teacher = method.forward_both(batch)
    losses = method.losses(student, teacher, batch)
    classifier = method.teacher.network.classifier
    connected = method.connector(student.embedding).detach()
    expected = literal(*(v.double() for v in (connected, teacher.embedding, teacher.logits)), *classifier.parameters())
    assert [losses["feature"].item(), losses["logit"].item()] == pytest.approx(expected, rel=1e-4)
    sum(losses.values()).backward()
    assert all(p.grad is None for p in classifier.parameters())
    assert method.student.classifier.weight.grad is None  # it learns from the labels alone
    assert all(p.grad.abs().max() > 0 for p in method.connector.parameters())


def test_zero_where_the_connected_embedding_is_the_teachers():
    embedding, weight, bias = random(8, 6, 5), random(9, 4, 5), random(10, 4)
    losses = srrl_losses(embedding, embedding, embedding @ weight.T + bias, weight, bias)
    assert [loss.item() for loss in losses] == pytest.approx([0, 0], abs=1e-24)


def test_a_weight_of_zero_leaves_a_loss_out():
    names = method_of("srrl", "method.feature_weight=0").batch_losses(batch_of()).keys()
    assert set(names) == {"ce", "logit"}


def test_two_classes_and_networks_of_other_widths():
    method = method_of("srrl", "student=vgg8", "teacher=wrn_16_2", sizes={**SIZES, "num_classes": 2})
    losses = method.batch_losses(batch_of(classes=1))
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sharp_classifier_is_finite_under_autocast(dtype):
    method = method_of("srrl")
    with torch.no_grad():
        method.teacher.network.classifier.weight.mul_(100)
    with torch.autocast("cpu", dtype):
        losses = method.batch_losses(batch_of())
    losses["logit"].backward()
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)


def test_a_teacher_without_a_linear_classifier_is_refused():
    with pytest.raises(UserError, match="srrl is not possible with this teacher: its classifier"):
        method_of("srrl", teacher=_without_classifier())


def _without_classifier():
    toy = Toy(features_of(6, 4, 1))
    toy.classifier = torch.nn.Identity()
    return toy

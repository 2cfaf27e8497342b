"""SRD against the formula of Miles & Mikolajczyk (2024), written out literally in float64."""

import math

import pytest
import torch

from kdbench.conformance.toys import batch_of
from kdbench.errors import UserError
from kdbench.methods.kd import kd_loss
from kdbench.methods.srd import EPS, log_sum_loss
from tests.helpers.methods import method_of
from tests.helpers.numeric import numeric_gradient, random


def literal_standardised(rows):
    """(x - mean) / sqrt(var + eps) of each column, var the mean square over the batch."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        columns.append([(x - mean) / math.sqrt(variance + 1e-4) for x in column])
    return columns


def literal(student, teacher, power=4.0):
    """log sum_bd |BN(s)_bd - BN(t)_bd|^power, of embeddings of the same width."""
    total = 0.0
    for s, t in zip(literal_standardised(student.tolist()), literal_standardised(teacher.tolist()), strict=True):
        total += sum(abs(a - b) ** power for a, b in zip(s, t, strict=True))
    return math.log(total)


def literal_projected(student, weight):
    """P e_s of each sample."""
    projected = [[sum(p * x for p, x in zip(row, e, strict=True)) for row in weight.tolist()] for e in student.tolist()]
    return torch.tensor(projected, dtype=torch.float64)


@pytest.fixture
def embeddings():
    return 2 + 3 * random(31, 6, 5), random(32, 6, 5)


@pytest.mark.parametrize("power", [4.0, 2.0, 1.5])
def test_value_and_gradient(embeddings, power):
    student, teacher = embeddings
    leaf = student.clone().requires_grad_()
    loss = log_sum_loss(leaf, teacher, power)
    assert loss.item() == pytest.approx(literal(student, teacher, power), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, power), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    assert EPS == 1e-4


def test_scale_and_shift_of_each_channel_of_either_change_nothing(embeddings):
    student, teacher = embeddings
    scale, shift = 10 + random(33, 5).abs(), random(34, 5)
    expected = log_sum_loss(1e3 * student, 1e3 * teacher, 4.0).item()
    assert log_sum_loss(1e3 * student * scale + shift, 1e3 * teacher, 4.0).item() == pytest.approx(expected, rel=1e-6)
    assert log_sum_loss(1e3 * student, 1e3 * teacher * scale + shift, 4.0).item() == pytest.approx(expected, rel=1e-6)


def test_it_is_the_logarithm_of_the_sum_not_of_the_mean_nor_the_sum_of_logarithms(embeddings):
    student, teacher = embeddings
    twice = [torch.cat([embedding, embedding]) for embedding in (student, teacher)]
    expected = log_sum_loss(student, teacher, 4.0).item()
    assert log_sum_loss(*twice, 4.0).item() == pytest.approx(expected + math.log(2), rel=1e-12)


def test_equal_embeddings_and_dead_channels_are_finite(embeddings):
    student, teacher = (embedding.float() for embedding in embeddings)
    teacher[:, 0] = 0
    for other in (teacher, student.clone(), torch.zeros_like(teacher)):
        leaf = student.clone().requires_grad_()
        loss = log_sum_loss(leaf, other, 4.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()


def test_the_projected_embedding_is_compared_and_kl_added():
    method, batch = method_of("srd", "method.weight=3", "method.kd_weight=5", "method.temperature=2"), batch_of()
    student, teacher = method.forward_both(batch)
    projected = literal_projected(student.embedding.detach().double(), method.projector.weight)
    losses = method.batch_losses(batch)
    assert losses["srd"].item() == pytest.approx(3 * literal(projected, teacher.embedding.double()), rel=1e-4)
    assert losses["kd"].item() == pytest.approx(5 * kd_loss(student.logits, teacher.logits, 2.0).item(), rel=1e-6)
    assert losses["ce"].item() == pytest.approx(method.label_loss(student.logits, batch).item(), rel=1e-6)


def test_the_projector_is_one_matrix_that_is_trained_and_not_exported():
    method = method_of("srd")
    shapes = [(64, 64)]  # embeddings of resnet8 and resnet14
    assert [tuple(p.shape) for p in method.projector.parameters()] == shapes
    assert method.extra_parameters() == 64 * 64
    sum(method.batch_losses(batch_of()).values()).backward()
    assert method.projector.weight.grad.abs().sum() > 0


def test_networks_of_unequal_widths():
    method = method_of("srd", "teacher=resnet8x4")
    assert tuple(method.projector.weight.shape) == (256, 64)
    assert torch.isfinite(method.batch_losses(batch_of())["srd"])


def test_without_kl():
    assert set(method_of("srd", "method.kd_weight=0").batch_losses(batch_of())) == {"ce", "srd"}


def test_one_sample_has_no_batch_statistics():
    with pytest.raises(ValueError, match="more than 1 value"):
        log_sum_loss(torch.ones(1, 4), torch.ones(1, 4), 4.0)


@pytest.mark.parametrize("words", [["srd"], ["ce", "plus=[srd]"]])
def test_batches_of_one_sample_are_refused(words):
    with pytest.raises(UserError, match=r"recipe\.batch_size=1 is not possible with srd, only 2 or more: "):
        method_of(*words, "recipe.batch_size=1")

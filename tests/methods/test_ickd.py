"""ICKD against the formula of Liu et al. (2021), written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.ickd import correlation, ickd_loss
from tests.helpers.methods import batch_of, method_of, toy_method
from tests.helpers.numeric import numeric_gradient, random


def literal_correlation(maps):
    """Row c: G_c / ||G_c||, G_cd = sum_p f_cp f_dp; maps (C,P) as lists."""
    rows = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in maps] for a in maps]
    return [[g / math.sqrt(sum(v**2 for v in row)) for g in row] for row in rows]


def literal(student, teacher):
    """1/(B C) sum_b ||G_S - G_T||_F^2."""
    total = 0.0
    for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        for ours, theirs in zip(literal_correlation(s), literal_correlation(t), strict=True):
            total += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    return total / (student.shape[0] * student.shape[1])


@pytest.fixture
def maps():
    return random(1, 3, 4, 2, 3), random(2, 3, 4, 4, 4)  # of different sizes


def test_value_and_gradient(maps):
    student, teacher = maps
    leaf = student.clone().requires_grad_()
    loss = ickd_loss(leaf, teacher)
    assert loss.item() == pytest.approx(literal(student, teacher), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_correlation_compares_the_channels_of_one_image(maps):
    out = correlation(maps[0])
    assert out.shape == (3, 4, 4)
    expected = torch.tensor([literal_correlation(m) for m in maps[0].flatten(2).tolist()], dtype=torch.float64)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out, out.mT)  # each row has its own norm


def test_equal_channels_against_orthogonal_ones():
    # G_T = 1/sqrt(C) everywhere, G_S the identity: rows of squared distance 2 - 2/sqrt(C)
    student = torch.eye(4).view(1, 4, 2, 2).repeat(5, 1, 1, 1)
    assert ickd_loss(student, torch.ones(5, 4, 3, 3)).item() == pytest.approx(2 - 2 / math.sqrt(4))


def test_scaling_and_the_order_of_pixels_change_nothing(maps):
    student, teacher = maps
    expected = ickd_loss(student, teacher).item()
    assert ickd_loss(1e3 * student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert ickd_loss(student.flip(2, 3), 1e-3 * teacher).item() == pytest.approx(expected, rel=1e-9)


def test_channels_that_are_zero_have_a_small_gradient(maps):
    student, teacher = maps
    student[:, 1] = 0
    student.requires_grad_()
    loss = ickd_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad.abs().max() < 100


def test_large_float32_maps_are_finite():
    generator = torch.Generator().manual_seed(3)
    student = (6e4 * torch.rand(4, 8, 8, 8, generator=generator)).requires_grad_()
    loss = ickd_loss(student, 6e4 * torch.rand(4, 8, 4, 4, generator=generator))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_the_embedding_is_a_convolution_to_the_teachers_channels_and_a_batch_norm():
    method = method_of("ickd", "student=resnet8", "teacher=vgg8")
    assert method.extra_parameters() == 64 * 512 + 2 * 512
    student, teacher = method.forward_both(batch_of())
    conv, norm = method.embeddings[0]
    x = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], student.stages[-1])
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    embedded = ((x - mean) / (variance + norm.eps).sqrt()).double()
    loss = method.losses(student, teacher, batch_of())["ickd"]
    assert loss.item() == pytest.approx(2.5 * ickd_loss(embedded, teacher.stages[-1].double()).item(), rel=1e-3)


def test_several_maps_are_summed():
    method = toy_method("ickd", "method.stages=null")
    assert len(method.embeddings) == 3
    method.eval()
    total = method.batch_losses(batch_of(6))["ickd"].item()
    single = []
    for number in range(3):
        method.pairs, chosen = [(number + 1, number + 1)], method.embeddings
        method.embeddings = torch.nn.ModuleList([chosen[number]])
        single.append(method.batch_losses(batch_of(6))["ickd"].item())
        method.embeddings = chosen
    assert total == pytest.approx(sum(single), rel=1e-5)


def test_a_teacher_with_a_single_channel_is_refused():
    with pytest.raises(UserError, match=r"ickd cannot compare .* one channel"):
        method_of("ickd")._require_channels([(4, 2, 2), (1, 2, 2)])

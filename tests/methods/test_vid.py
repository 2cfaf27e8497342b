"""VID against the Gaussian likelihood of Ahn et al. (2019), written out literally in float64."""

import math

import pytest
import torch
from torch import nn

from kdbench.methods.feature_maps import pooled
from kdbench.methods.vid import EPS, VID, Gaussian, vid_loss
from kdbench.models.features import Features, Shapes
from tests.helpers.numeric import numeric_gradient, random


def literal(mean, scale, target):
    """1/(BCHW) sum 1/2 ( (t - mu)^2 / sigma_c^2 + log sigma_c^2 ), sigma_c^2 = log(1 + exp(alpha_c)) + 1e-5."""
    total = 0.0
    for mus, ts in zip(mean.tolist(), target.tolist(), strict=True):
        for mu, t, alpha in zip(mus, ts, scale.tolist(), strict=True):
            variance = math.log1p(math.exp(alpha)) + EPS
            for mu_row, t_row in zip(mu, t, strict=True):
                pixels = zip(mu_row, t_row, strict=True)
                total += sum(((y - x) ** 2 / variance + math.log(variance)) / 2 for x, y in pixels)
    return total / target.numel()


def test_value_and_gradient():
    mean, scale, target = random(110, 2, 3, 2, 2), random(111, 3), random(112, 2, 3, 2, 2)
    leaves = mean.clone().requires_grad_(), scale.clone().requires_grad_()
    loss = vid_loss(*leaves, target)
    assert loss.item() == pytest.approx(literal(mean, scale, target), rel=1e-12)
    loss.backward()
    for leaf, x, function in [
        (leaves[0], mean, lambda m: literal(m, scale, target)), (leaves[1], scale, lambda a: literal(mean, a, target))
    ]:  # fmt: skip
        expected = numeric_gradient(function, x)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_without_the_logarithm_the_variance_would_grow_for_ever():
    # the best variance is the mean squared error of the channel: its gradient is zero there
    mean, target = random(113, 4, 2, 3, 3), random(114, 4, 2, 3, 3)
    errors = (mean - target).square().mean((0, 2, 3))
    scale = torch.log(torch.expm1(errors - EPS)).requires_grad_()
    vid_loss(mean, scale, target).backward()
    assert scale.grad.abs().max() < 1e-12


@pytest.mark.parametrize("alpha", [-200.0, 200.0])
def test_the_variance_neither_overflows_nor_reaches_zero(alpha):
    mean, scale = random(115, 2, 3, 2, 2).float().requires_grad_(), torch.full((3,), alpha, requires_grad=True)
    loss = vid_loss(mean, scale, random(116, 2, 3, 2, 2).float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(scale.grad).all()


def test_the_variances_start_as_given():
    module = Gaussian(4, 6, 5.0).double()
    variances = torch.nn.functional.softplus(module.scale) + EPS
    torch.testing.assert_close(variances, torch.full((6,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_regressor_is_three_pointwise_convolutions_without_bias():
    torch.manual_seed(6)
    module = Gaussian(4, 6, 5.0).double()
    x = random(117, 2, 4, 3, 3)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    expected = x
    for i, convolution in enumerate(convolutions):
        expected = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], expected.relu() if i else expected)
    torch.testing.assert_close(module.mean(x), expected, rtol=1e-10, atol=1e-12)
    assert [tuple(c.weight.shape[:2]) for c in convolutions] == [(6, 4), (6, 6), (6, 6)]
    assert sum(p.numel() for p in module.parameters()) == 6 * 4 + 2 * 6 * 6 + 6


def test_the_maps_are_summed_weighted_and_pooled():
    torch.manual_seed(7)
    method = VID(2.0, None, 5.0)
    method.prepare(Shapes([(2, 4, 4), (3, 4, 4), (4, 2, 2)], 4, 3), Shapes([(2, 4, 4), (5, 2, 2), (6, 4, 4)], 4, 3))
    method.double()
    student = Features([random(120, 2, 2, 4, 4), random(121, 2, 3, 4, 4), random(122, 2, 4, 2, 2)], None, None)
    teacher = Features([random(123, 2, 2, 4, 4), random(124, 2, 5, 2, 2), random(125, 2, 6, 4, 4)], None, None)
    expected = 0.0
    for module, i in zip(method.gaussians, (1, 2), strict=True):  # not the stem
        mean = module.mean(pooled(student.stages[i], (2, 2)))
        expected += literal(mean.detach(), module.scale.detach(), pooled(teacher.stages[i], (2, 2)))
    loss = method.losses(student, teacher, None)["vid"]
    assert loss.item() == pytest.approx(2 * expected, rel=1e-10)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())

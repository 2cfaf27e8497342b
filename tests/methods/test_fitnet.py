"""FitNet against eq. 3 of Romero et al. (2015), and the regressor of RepDistiller, written out literally."""

import pytest
import torch
from torch import nn

from kdbench.methods.feature_maps import matched
from kdbench.methods.fitnet import hint_loss, regressor


def literal(student, teacher, distance):
    """mean: 1/(BCHW) sum (s - t)^2; sum: 1/B sum_b 1/2 sum_chw (s - t)^2."""
    squares = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return squares / student.numel() if distance == "mean" else squares / (2 * len(student))


def literal_gradient(student, teacher, distance):
    """mean: 2 (s - t) / (BCHW); sum: (s - t) / B."""
    return (student - teacher) * (2 / student.numel() if distance == "mean" else 1 / len(student))


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(2)
    return [3 * torch.randn(5, 3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("distance", ["mean", "sum"])
def test_value_and_gradient(maps, distance):
    student, teacher = maps
    student.requires_grad_()
    loss = hint_loss(student, teacher, distance)
    assert loss.item() == pytest.approx(literal(student, teacher, distance), rel=1e-12)
    loss.backward()
    expected = literal_gradient(student.detach(), teacher, distance)
    torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-14)


def test_the_two_distances_differ_by_half_the_size_of_a_map(maps):
    assert hint_loss(*maps, "sum").item() == pytest.approx(3 * 4 * 2 / 2 * hint_loss(*maps, "mean").item())


@pytest.mark.parametrize("distance", ["mean", "sum"])
def test_zero_for_equal_maps_and_the_mean_over_a_doubled_batch(maps, distance):
    student, teacher = maps
    assert hint_loss(student, student.clone(), distance).item() == 0
    doubled = hint_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), distance)
    assert doubled.item() == pytest.approx(hint_loss(student, teacher, distance).item(), rel=1e-12)


# number of parameters: weights and biases of the convolution, and two for each channel of the batch norm
RATIOS = {
    "half": ((6, 8, 8), (10, 4, 4), 6 * 10 * 9 + 10 + 20),
    "half of an oblong": ((6, 8, 4), (10, 4, 2), 6 * 10 * 9 + 10 + 20),
    "double": ((6, 4, 4), (10, 8, 8), 6 * 10 * 16 + 10 + 20),
    "equal": ((6, 5, 5), (10, 5, 5), 6 * 10 + 10 + 20),
    "published, resnet32x4 to resnet8x4": ((128, 16, 16), (128, 16, 16), 16768),
}


@pytest.mark.parametrize(("student", "teacher", "parameters"), RATIOS.values(), ids=RATIOS)
def test_regressor_gives_the_teachers_shape(student, teacher, parameters):
    module = regressor(student, teacher, True)
    assert module(torch.randn(2, *student)).shape == (2, *teacher)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((6, 12, 12), (10, 5, 5)), ((6, 5, 5), (10, 12, 12)), ((6, 16, 16), (10, 4, 4)), ((6, 4, 4), (10, 16, 16))],
)
def test_regressor_of_another_ratio_is_pointwise_on_the_matched_map(student, teacher):
    module = regressor(student, teacher, True)
    student_maps, teacher_maps = matched(torch.randn(2, *student), torch.randn(2, *teacher))
    assert module(student_maps).shape == teacher_maps.shape
    assert sum(p.numel() for p in module.parameters()) == 6 * 10 + 10 + 20


@pytest.mark.parametrize("student", [(6, 8, 8), (6, 4, 4), (6, 2, 2)])
@pytest.mark.parametrize("relu", [True, False])
def test_regressor_is_convolution_batch_norm_relu(student, relu):
    torch.manual_seed(3)
    module = regressor(student, (10, 4, 4), relu).train()
    out = module(torch.randn(16, *student))
    assert (out.min().item() >= 0) == relu
    if not relu:  # the last layer is the batch norm: each channel has mean 0 and variance 1
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(10), rtol=0, atol=1e-4)
        torch.testing.assert_close(out.var((0, 2, 3), unbiased=False), torch.ones(10), rtol=0, atol=1e-2)


def test_regressor_equals_its_formula_on_equal_sizes():
    """relu(gamma (W x + b - mean) / sqrt(var + eps) + beta), statistics over batch and pixels."""
    torch.manual_seed(4)
    module = regressor((3, 4, 4), (5, 4, 4), True).double().train()
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    conv = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
    y = norm.weight[:, None, None] * y + norm.bias[:, None, None]
    torch.testing.assert_close(module(x), y.clamp(min=0), rtol=1e-10, atol=1e-12)

"""ReviewKD against the formulas of Chen et al. (2021), written out literally in float64."""

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.methods.machinery.stages import Progress
from kdbench.methods.reviewkd import Fusion, hcl_loss
from tests.helpers.methods import batch_of, method_of, toy_method
from tests.helpers.numeric import numeric_gradient, random


def cells(channel, side):
    """Means over side x side windows of one channel; the sides of the channel are multiples of `side`."""
    rows, columns = len(channel) // side, len(channel[0]) // side
    return [
        sum(channel[i * rows + r][j * columns + c] for r in range(rows) for c in range(columns)) / (rows * columns)
        for i in range(side)
        for j in range(side)
    ]


def literal(student, teacher):
    """sum_l w_l MSE_l / sum_l w_l: the whole map and 4x4, 2x2, 1x1 cells where smaller, w = 1, 1/2, 1/4, 1/8."""
    height = student.shape[2]
    weight, total, weights = 1.0, 0.0, 0.0
    for side in [height] + [level for level in (4, 2, 1) if level < height]:
        squares = []
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
            for a, b in zip(s, t, strict=True):
                squares += [(x - y) ** 2 for x, y in zip(cells(a, side), cells(b, side), strict=True)]
        total += weight * sum(squares) / len(squares)
        weights += weight
        weight /= 2
    return total / weights


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_value_and_gradient(side):
    student, teacher = random(1, 3, 2, side, side), random(2, 3, 2, side, side)
    leaf = student.clone().requires_grad_()
    loss = hcl_loss(leaf, teacher)
    assert loss.item() == pytest.approx(literal(student, teacher), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_a_constant_difference_is_its_square_at_every_size():
    for size in ((1, 1), (2, 2), (3, 5), (8, 4), (32, 32)):
        student = torch.zeros(2, 3, *size)
        assert hcl_loss(student, student + 3.0).item() == pytest.approx(9.0)


def test_only_the_whole_map_sees_a_difference_that_averages_out():
    student = torch.zeros(1, 1, 8, 8)
    teacher = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    assert hcl_loss(student, teacher).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def normalised(x, norm):
    """Batch norm in train mode: statistics over batch and pixels."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_the_fusion_equals_its_formula():
    """x' = a_1 BN(W x) + a_2 up(y), a = sigmoid(V [BN(W x); up(y)]); out = BN(conv3x3(up(x')))."""
    torch.manual_seed(3)
    fusion = Fusion(3, 4, 5, (4, 4), fuses=True).double().train()
    x, deeper = random(4, 6, 3, 2, 2), random(5, 6, 4, 1, 1)
    out, passed = fusion(x, deeper)
    reduced = normalised(torch.einsum("oc,bchw->bohw", fusion.reduce[0].weight[:, :, 0, 0], x), fusion.reduce[1])
    larger = deeper.expand(-1, -1, 2, 2)
    stacked = torch.cat([reduced, larger], 1)
    a = torch.einsum("oc,bchw->bohw", fusion.attention.weight[:, :, 0, 0], stacked)
    a = 1 / (1 + torch.exp(-a - fusion.attention.bias[:, None, None]))
    fused = a[:, :1] * reduced + a[:, 1:] * larger
    fused = fused.repeat_interleave(2, 2).repeat_interleave(2, 3)  # each pixel becomes four
    torch.testing.assert_close(passed, fused, rtol=1e-10, atol=1e-12)
    padded = nn.functional.pad(fused, (1, 1, 1, 1))
    kernel = fusion.expand[0].weight
    wide = sum(
        torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], padded[:, :, i : i + 4, j : j + 4])
        for i in range(3)
        for j in range(3)
    )
    torch.testing.assert_close(out, normalised(wide, fusion.expand[1]), rtol=1e-10, atol=1e-12)


def test_the_review_passes_the_fused_map_on_from_deep_to_shallow():
    method = toy_method("reviewkd", "method.warmup_epochs=0")
    student, teacher = method.student, method.teacher.network
    maps = [*student.stages[1:], student.embedding[..., None, None]]
    targets = [*teacher.stages[1:], teacher.embedding[..., None, None]]
    total, passed = 0.0, None
    for fusion, x, target in zip(reversed(method.fusions), reversed(maps), reversed(targets), strict=True):
        out, passed = fusion(x, passed)
        total += hcl_loss(out, target).item()
    loss = method.losses(student(torch.zeros(6, 1, 8, 8)), method.teacher(torch.zeros(6, 1, 8, 8)), None)
    assert loss["reviewkd"].item() == pytest.approx(5 * total, rel=1e-5)


def test_the_fusions_are_those_of_the_published_pair():
    """ResNet-56 to ResNet-20: 64 channels between, maps of 16, 32 and 64 channels and the embedding."""
    sizes = {"num_classes": 10, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    method = method_of("reviewkd", "student=resnet20", "teacher=resnet14", sizes=sizes)
    expected = 0
    for channels in (16, 32, 64, 64):
        expected += channels * 64 + 2 * 64 + 64 * channels * 9 + 2 * channels
    expected += 3 * (2 * 64 * 2 + 2)  # attention, everywhere but at the deepest
    assert method.extra_parameters() == expected
    assert [fusion.size for fusion in method.fusions] == [(32, 32), (16, 16), (8, 8), (1, 1)]


@pytest.mark.parametrize(("epoch", "share"), [(0, 1 / 20), (9, 1 / 2), (19, 1.0), (100, 1.0)])
def test_the_weight_rises_over_the_first_epochs(epoch, share):
    method = toy_method("reviewkd")
    method.progress = Progress(epoch, 240)
    loss = method.batch_losses(batch_of(6))["reviewkd"].item()
    method.warmup_epochs = 0
    assert loss == pytest.approx(share * method.batch_losses(batch_of(6))["reviewkd"].item(), rel=1e-5)


def test_networks_of_different_sizes_work():
    method = method_of("reviewkd", "student=wrn_16_2", "teacher=vgg8")
    loss = method.batch_losses(batch_of())["reviewkd"]
    loss.backward()
    assert torch.isfinite(loss)


def test_a_map_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"reviewkd.stages=\[7\] is not allowed"):
        method_of("reviewkd", "method.stages=[7]")

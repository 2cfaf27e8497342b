"""CAT-KD against the formula of Guo et al. (2023), written out literally in float64."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.catkd import activation_maps, cat_loss
from tests.helpers.methods import SIZES, batch_of, method_of
from tests.helpers.numeric import numeric_gradient, random


def literal_cells(maps, weights, side):
    """The map of one class, sum_c w_c f_c, averaged over side x side windows: a list of side^2 numbers."""
    height, width = len(maps[0]), len(maps[0][0])
    cam = [
        [sum(w * channel[i][j] for w, channel in zip(weights, maps, strict=True)) for j in range(width)]
        for i in range(height)
    ]
    rows, columns = height // side, width // side
    return [
        sum(cam[i * rows + r][j * columns + c] for r in range(rows) for c in range(columns)) / (rows * columns)
        for i in range(side)
        for j in range(side)
    ]


def literal(student, teacher, student_weight, teacher_weight, side, normalize):
    """1/(B K side^2) sum_bk || A_bk/||A_bk|| - A'_bk/||A'_bk|| ||^2."""
    total, count = 0.0, 0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for ours, theirs in zip(student_weight.tolist(), teacher_weight.tolist(), strict=True):
            a, b = literal_cells(s, ours, side), literal_cells(t, theirs, side)
            if normalize:
                a, b = ([v / math.sqrt(sum(u**2 for u in cells)) for v in cells] for cells in (a, b))
            total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
            count += len(a)
    return total / count


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("sizes", "side"),
    [(((3, 4, 4, 4), (3, 5, 4, 4)), 2), (((3, 4, 2, 2), (3, 3, 4, 4)), 2), (((3, 4, 2, 4), (3, 3, 4, 2)), 2)],
)
def test_value_and_gradient(sizes, side, normalize):
    student, teacher = random(1, *sizes[0]), random(2, *sizes[1])
    weights = random(3, 5, sizes[0][1]), random(4, 5, sizes[1][1])

    def loss_of(student, weight):
        maps = activation_maps(student, weight), activation_maps(teacher, weights[1])
        return cat_loss(*maps, side, normalize)

    leaf, weight = student.clone().requires_grad_(), weights[0].clone().requires_grad_()
    loss = loss_of(leaf, weight)
    assert loss.item() == pytest.approx(literal(student, teacher, *weights, side, normalize), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, *weights, side, normalize), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    expected = numeric_gradient(lambda w: literal(student, teacher, w, weights[1], side, normalize), weights[0])
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_each_class_is_normalised_by_itself():
    maps = random(5, 2, 3, 2, 2)
    scale = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert cat_loss(scale * maps, maps, 2, True).item() == pytest.approx(0, abs=1e-20)
    assert cat_loss(scale * maps, maps, 2, False).item() > 1


def test_a_map_that_is_zero_has_a_small_gradient():
    student = random(6, 2, 3, 4, 4)
    student[1] = 0
    student.requires_grad_()
    cat_loss(student, random(7, 2, 3, 4, 4), 2, True).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[1].abs().max() < 10


def test_the_mean_of_the_maps_is_the_logits_without_the_bias():
    method = method_of("catkd").eval()
    with torch.no_grad():
        features = method.student(batch_of().images)
        maps = activation_maps(features.stages[-1], method.student.classifier.weight)
    expected = features.logits - method.student.classifier.bias
    torch.testing.assert_close(maps.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_last_maps_and_reaches_the_students_classifier():
    method, batch = method_of("catkd"), batch_of()
    student, teacher = method.forward_both(batch)
    loss = method.losses(student, teacher, batch)["cat"]
    weights = method.student.classifier.weight.detach().double(), method.teacher.network.classifier.weight.double()
    maps = student.stages[-1].detach().double(), teacher.stages[-1].double()
    assert loss.item() == pytest.approx(400 * literal(*maps, *weights, 2, True), rel=1e-4)
    loss.backward()
    assert method.student.classifier.weight.grad.abs().max() > 0


@pytest.mark.parametrize("labels", [[0] * 8, [1] * 8])
def test_two_classes_and_a_batch_of_one_of_them(labels):
    method = method_of("catkd", sizes={**SIZES, "num_classes": 2})
    losses = method.batch_losses(batch_of()._replace(labels=torch.tensor(labels)))
    losses["cat"].backward()
    assert torch.isfinite(losses["cat"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_networks_are_finite_under_autocast(dtype):
    method = method_of("catkd")
    with torch.no_grad():
        for classifier in (method.student.classifier, method.teacher.network.classifier):
            classifier.weight.mul_(1e5)
    with torch.autocast("cpu", dtype):
        loss = method.batch_losses(batch_of())["cat"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)


@pytest.mark.parametrize("networks", [["student=wrn_16_2"], ["teacher=mobilenetv2"], ["student=lenet5"]])
def test_networks_with_layers_between_map_and_classifier_are_refused(networks):
    role = networks[0].partition("=")[0]
    with pytest.raises(UserError, match=f"catkd is not possible with this {role}"):
        method_of("catkd", *networks)


def test_a_resolution_above_that_of_a_map_is_refused():
    with pytest.raises(UserError, match=r"catkd.resolution=3 is not possible: .* 2x2"):
        method_of("catkd", "method.resolution=3")


def test_normalised_maps_of_one_pixel_are_refused():
    with pytest.raises(UserError, match=r"catkd.resolution=1 is not possible with catkd.normalize=true"):
        method_of("catkd", "method.resolution=1")
    method_of("catkd", "method.resolution=1", "method.normalize=false")

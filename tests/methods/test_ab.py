"""AB against the alternative loss of Heo et al. (2019), with RepDistiller's scales, written out in float64."""

import pytest
import torch
from torch import nn

from kdbench.methods.ab import AB, boundary_loss
from kdbench.models.features import Features, Shapes
from tests.helpers.methods import batch_of, method_of
from tests.helpers.numeric import numeric_gradient, random


def literal(student, teacher, margin):
    """3/1000 1/B sum of (s + m)^2 where t <= 0 and s > -m, of (s - m)^2 where t > 0 and s <= m."""
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
    return 3 / 1000 * total / len(student)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_value_and_gradient(margin):
    student, teacher = 2 * random(150, 3, 4, 2, 3), random(151, 3, 4, 2, 3)
    leaf = student.clone().requires_grad_()
    loss = boundary_loss(leaf, teacher, margin)
    assert loss.item() == pytest.approx(literal(student, teacher, margin), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, margin), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


def test_only_whether_the_teacher_is_active_matters():
    student, teacher = random(152, 3, 4, 2, 3), random(153, 3, 4, 2, 3)
    expected = boundary_loss(student, teacher, 1.0).item()
    assert boundary_loss(student, 1e3 * teacher, 1.0).item() == expected
    assert boundary_loss(student, teacher.relu(), 1.0).item() == expected  # so maps may be taken after the ReLU
    assert boundary_loss(student, -teacher, 1.0).item() != pytest.approx(expected, rel=1e-3)


def test_zero_with_a_zero_gradient_beyond_the_margin_on_the_right_side():
    teacher = random(154, 3, 4, 2, 3)
    student = (teacher.sign() * 1.5).requires_grad_()
    loss = boundary_loss(student, teacher, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_on_the_wrong_side_the_gradient_grows_with_the_distance():
    student = torch.tensor([[[[-3.0, 0.0, 0.9]]]], requires_grad=True)
    boundary_loss(student, torch.ones(1, 1, 1, 3), 1.0).backward()
    torch.testing.assert_close(student.grad.flatten(), 0.003 * 2 * torch.tensor([-4.0, -1.0, -0.1]))


STUDENT = Shapes([(4, 4, 4), (6, 4, 4), (8, 4, 4), (8, 2, 2)], 4, 3)
TEACHER = Shapes([(4, 4, 4), (6, 4, 4), (10, 2, 2), (12, 4, 4)], 4, 3)


def test_maps_after_the_stem_are_connected_and_the_deeper_ones_weigh_more():
    torch.manual_seed(9)
    method = AB(2.0, None, 1.0, "joint", {"epochs": 0.5, "lr": 1.0})
    method.prepare(STUDENT, TEACHER)
    method.double().train()
    student, teacher = (
        Features([random(seed + i, 2, *shape) for i, shape in enumerate(shapes.stages)], None, None)
        for seed, shapes in ((155, STUDENT), (160, TEACHER))
    )
    expected = sum(
        share * literal(connector(student.stages[i]).detach(), teacher.stages[i], 1.0)
        for i, connector, share in zip((1, 2, 3), method.connectors, (1 / 4, 1 / 2, 1), strict=True)
    )
    assert method.losses(student, teacher, None)["ab"].item() == pytest.approx(2 * expected, rel=1e-10)
    # both signs are needed, even where shapes are equal: after the ReLU, the student has no negative values
    for connector in method.connectors:
        assert isinstance(connector[-1], nn.BatchNorm2d)


def test_staged_trains_the_boundaries_first_and_then_the_labels_alone():
    method = method_of("ab", "recipe.epochs=8")
    assert [(stage.name, stage.recipe["epochs"]) for stage in method.stages] == [("boundaries", 1), ("training", 8)]
    assert list(method.batch_losses(batch_of())) == ["ab"]
    method.enter_epoch(1)
    assert list(method.batch_losses(batch_of())) == ["ce"]


def test_joint_is_one_stage_with_both():
    method = method_of("ab", "method.training=joint")
    assert len(method.stages) == 1
    assert list(method.batch_losses(batch_of())) == ["ce", "ab"]


def test_saturated_float32_maps_are_finite():
    student = (6e4 * random(165, 2, 64, 8, 8).float()).requires_grad_()
    loss = boundary_loss(student, random(166, 2, 64, 8, 8).float(), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()

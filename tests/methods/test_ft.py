"""FT against the losses of Kim et al. (2018) and RepDistiller, written out literally in float64."""

import math

import pytest
import pytorch_lightning as pl
import torch

from kdbench.errors import UserError
from kdbench.methods.feature_maps import pooled
from kdbench.methods.ft import FT, factor_loss
from kdbench.models.features import Features, Shapes
from tests.helpers.methods import batch_of, fit, method_of
from tests.helpers.numeric import numeric_gradient, random


def normalised(values):
    norm = math.sqrt(sum(v**2 for v in values))
    return [v / norm for v in values]


def factor(maps, variant):
    """reference: q / ||q||_2, q_hw = mean_c f_chw^2; paper: f / ||f||_2; of one sample (C,H,W)."""
    height, width = len(maps[0]), len(maps[0][0])
    if variant == "paper":
        return normalised([v for channel in maps for row in channel for v in row])
    return normalised([
        sum(channel[h][w] ** 2 for channel in maps) / len(maps) for h in range(height) for w in range(width)
    ])  # fmt: skip


def literal(student, teacher, variant):
    """1/(B N) sum_b sum_n |f^s_bn - f^t_bn|, N the number of elements of a factor."""
    rows = [
        [factor(maps, variant) for maps in pair] for pair in zip(student.tolist(), teacher.tolist(), strict=True)
    ]  # fmt: skip
    return sum(sum(abs(a - b) for a, b in zip(s, t, strict=True)) / len(s) for s, t in rows) / len(rows)


VARIANTS = pytest.mark.parametrize("variant", ["reference", "paper"])


@VARIANTS
def test_value_and_gradient(variant):
    student, teacher = random(130, 3, 4, 2, 3), random(131, 3, 4, 2, 3)
    leaf = student.clone().requires_grad_()
    loss = factor_loss(leaf, teacher, variant)
    assert loss.item() == pytest.approx(literal(student, teacher, variant), rel=1e-12)
    loss.backward()
    expected = numeric_gradient(lambda x: literal(x, teacher, variant), student)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@VARIANTS
def test_the_larger_factor_is_pooled_first(variant):
    student, teacher = random(132, 3, 4, 4, 4), random(133, 3, 4, 2, 2)
    expected = literal(pooled(student, (2, 2)), teacher, variant)
    assert factor_loss(student, teacher, variant).item() == pytest.approx(expected, rel=1e-12)
    assert factor_loss(teacher, student, variant).item() == pytest.approx(expected, rel=1e-12)


@VARIANTS
def test_scaling_each_sample_changes_nothing_and_a_map_of_zeros_is_finite(variant):
    student, teacher = random(134, 3, 4, 2, 3), random(135, 3, 4, 2, 3)
    expected = factor_loss(student, teacher, variant).item()
    scale = torch.tensor([1e-2, 3.0, 1e3], dtype=torch.float64).view(3, 1, 1, 1)
    assert factor_loss(scale * student, teacher, variant).item() == pytest.approx(expected, rel=1e-9)
    student[1] = 0
    student.requires_grad_()
    factor_loss(student, teacher, variant).backward()
    assert torch.isfinite(student.grad).all()


SHAPES = Shapes([(4, 4, 4), (6, 4, 4)], 4, 3), Shapes([(8, 4, 4), (10, 4, 4)], 4, 3)


def prepared(training="joint", variant="reference", rate=0.5):
    torch.manual_seed(8)
    method = FT(200.0, [-1], variant, rate, 0.2, training, {"epochs": 0.5, "lr": 1.0})
    method.prepare(*SHAPES)
    return method.double()


def features():
    return [Features([random(s + i, 2, *m) for i, m in enumerate(x.stages)], None, None)
            for s, x in zip((136, 138), SHAPES, strict=True)]  # fmt: skip


@pytest.mark.parametrize(("rate", "width"), [(0.5, 5), (0.75, 7), (0.01, 1)])
def test_paraphraser_and_translator_give_factors_of_the_same_width(rate, width):
    method, (student, teacher) = prepared(rate=rate), features()
    assert method.translators[0](student.stages[-1]).shape == (2, width, 4, 4)
    assert method.paraphrasers[0].encoder(teacher.stages[-1]).shape == (2, width, 4, 4)
    assert method.paraphrasers[0](teacher.stages[-1]).shape == (2, 10, 4, 4)


def test_joint_losses_reach_each_module_by_its_own_loss_alone():
    method, (student, teacher) = prepared(), features()
    losses = method.losses(student, teacher, None)
    translated = method.translators[0](student.stages[-1]).detach()
    encoded = method.paraphrasers[0].encoder(teacher.stages[-1]).detach()
    rebuilt = method.paraphrasers[0](teacher.stages[-1]).detach()
    assert losses["factor"].item() == pytest.approx(200 * literal(translated, encoded, "reference"), rel=1e-9)
    error = (rebuilt - teacher.stages[-1]).square().mean().item()
    assert losses["paraphraser"].item() == pytest.approx(error, rel=1e-9)
    # otherwise, the teacher's factor would be trained to be easy instead of true
    losses["factor"].backward()
    assert all(p.grad is None for p in method.paraphrasers.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.translators.parameters() if p.ndim > 1)
    losses["paraphraser"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.paraphrasers.parameters())


class Starts(pl.Callback):
    """Keeps the parameters at the first step of each epoch."""

    def __init__(self):
        self.parameters = []

    def on_train_batch_start(self, trainer, method, batch, index):
        if index == 0:
            self.parameters.append({name: p.detach().clone() for name, p in method.named_parameters()})


def test_staged_trains_the_paraphraser_first_and_then_no_more():
    method = method_of("ft", "method.training=staged", "method.first_stage.epochs=0.5", "recipe.epochs=2")
    assert [stage.name for stage in method.stages] == ["paraphraser", "training"]
    assert method.total_epochs == 3
    losses = []
    for epoch in (0, 1):
        method.enter_epoch(epoch)
        losses.append(list(method.batch_losses(batch_of())))
    assert losses == [["paraphraser"], ["ce", "factor"]]
    starts = Starts()
    fit(method, starts)
    start, second, third = starts.parameters
    for name in start:
        trained = not torch.equal(start[name], second[name]), not torch.equal(second[name], third[name])
        assert trained == ((True, False) if name.startswith("paraphrasers.") else (False, True)), name


def test_maps_of_one_pixel_are_refused_where_the_loss_is_always_zero():
    shapes = Shapes([(8, 1, 1)], 8, 3)
    options = [0.5, 0.2, "joint", {"epochs": 0.5, "lr": 1.0}]
    with pytest.raises(UserError, match=r"ft cannot compare stage map 0 .*1x1"):
        FT(200.0, [-1], "reference", *options).prepare(shapes, shapes)
    FT(200.0, [-1], "paper", *options).prepare(shapes, shapes)

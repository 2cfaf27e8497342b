"""Optimisers and schedules of a recipe: torch's and timm's own, with the values of the recipe."""

import itertools
import math

import pytest
import torch
from timm.optim import Adan, Lamb, Lars, Lion, NAdamW
from torch import nn
from torch.nn import functional as F

from kdbench.config.groups import options
from kdbench.config.rules import rules_of
from kdbench.errors import UserError
from kdbench.methods.machinery import optim
from kdbench.methods.machinery.several_optimizers import SeveralOptimizers
from kdbench.specs.recipes import BETAS
from tests.helpers.methods import batch_of, config_of, fit, method_of

CLASSES = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
    "lamb": Lamb, "lars": Lars, "lion": Lion, "nadamw": NAdamW, "radam": torch.optim.RAdam, "adan": Adan,
}  # fmt: skip


def recipe_of(*overrides):
    return config_of("ce", *overrides)["recipe"]


def built(recipe, *factors):
    """An optimiser and a schedule; a further group for every factor of the learning rate."""
    torch.manual_seed(0)
    modules = [nn.Linear(3, 2) for _ in range(1 + len(factors))]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return optim.build(recipe, parameters, list(zip(modules[1:], factors, strict=True)))


def rates(recipe, *factors):
    """The learning rates of each epoch, those of all groups."""
    optimizer, schedule = built(recipe, *factors)
    lists = []
    for _ in range(recipe["epochs"]):
        lists.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return lists


def test_the_rule_and_the_tests_name_the_same_optimisers():
    assert set(rules_of("recipe/crd240")["optimizer"].choices) == set(CLASSES)
    assert rules_of("teacher/_base")["recipe.optimizer"] == rules_of("recipe/crd240")["optimizer"]
    assert rules_of("teacher/_base")["recipe.schedule"] == rules_of("recipe/crd240")["schedule"]


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimiser_is_of_its_class_has_the_values_of_the_recipe_and_takes_steps(name):
    betas = [0.7, 0.8, 0.9][: BETAS.get(name, 0)]
    given = [f"recipe.betas={betas}"] if betas else ["recipe.nesterov=true"] if name in ("sgd", "lars") else []
    recipe = recipe_of(
        f"recipe.optimizer={name}", "recipe.lr=0.01", "recipe.weight_decay=0.001", "recipe.momentum=0.6", *given
    )
    optimizer, _ = built(recipe, 0.5)
    assert type(optimizer) is CLASSES[name]
    for group, lr in zip(optimizer.param_groups, (0.01, 0.005), strict=True):
        assert group["lr"] == lr
        assert group["weight_decay"] == 0.001
        assert tuple(group.get("betas", ())) == tuple(betas)
        assert "momentum" not in group or group["momentum"] == 0.6
        assert group.get("nesterov", False) is (name in ("sgd", "lars"))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        optimizer.step()
    assert all((parameter < old).all() for parameter, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "lion", "nadamw", "radam", "adan"])
def test_without_betas_an_optimiser_keeps_its_own(name):
    optimizer, _ = built(recipe_of(f"recipe.optimizer={name}"))
    own = CLASSES[name]([nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["betas"] == own.defaults["betas"]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_torchs_own_optimisers_are_fused_unless_gradients_are_clipped(name):
    assert built(recipe_of(f"recipe.optimizer={name}"))[0].defaults["fused"] is True
    clipped = recipe_of(f"recipe.optimizer={name}", "recipe.grad_clip=1")
    assert built(clipped)[0].defaults["fused"] is None


@pytest.mark.parametrize(("key", "value"), [("optimizer", "sdg"), ("schedule", "cyclic"), ("betas", [0.9, 0.99])])
def test_what_nobody_knows_never_falls_through(key, value):
    with pytest.raises(UserError, match=rf"recipe\.{key}=") as caught:
        built({**recipe_of(), key: value})
    assert str(value) in str(caught.value)


def test_a_schedule_drops_after_the_epochs_that_the_recipe_names():
    recipe = recipe_of("recipe=bss80", "recipe.epochs=80")
    lr = [group[0] for group in rates(recipe)]
    assert lr == pytest.approx([0.1] * 39 + [0.01] * 20 + [0.001] * 21)


FORMULAS = {
    "cosine": lambda x, final: final + (1 - final) * (1 + math.cos(math.pi * x)) / 2,
    "linear": lambda x, final: 1 - (1 - final) * x,
}


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("final", [0, 0.2])
@pytest.mark.parametrize("warmup", [0, 3])
def test_a_schedule_falls_to_its_minimum_after_a_ramp(schedule, final, warmup):
    recipe = recipe_of(
        f"recipe.schedule={schedule}", "recipe.epochs=10", "recipe.lr=0.4", f"recipe.final_lr_factor={final}",
        f"recipe.warmup_epochs={warmup}",
    )  # fmt: skip
    expected = [(epoch + 1) / (warmup + 1) for epoch in range(warmup)]
    expected += [FORMULAS[schedule](epoch / (10 - warmup), final) for epoch in range(10 - warmup)]
    for lr, factor in zip(rates(recipe, 0.1), expected, strict=True):
        assert lr == pytest.approx([0.4 * factor, 0.04 * factor])


def test_one_cycle_rises_to_the_learning_rate_and_falls_to_almost_nothing():
    recipe = recipe_of("recipe.schedule=onecycle", "recipe.epochs=10", "recipe.lr=0.4", "recipe.momentum=0.6")
    lr = rates(recipe, 0.1)
    assert lr[0] == pytest.approx([0.4 / 25, 0.04 / 25])
    assert lr[2] == pytest.approx([0.4, 0.04])  # 30 % of the epochs
    assert lr[0] < lr[1] < lr[2]
    assert all(later < earlier for earlier, later in itertools.pairwise(lr[2:]))
    assert lr[-1] == pytest.approx([0.4 / 25e4, 0.04 / 25e4])
    assert built(recipe)[0].param_groups[0]["momentum"] == 0.6


@pytest.mark.parametrize("schedule", ["step", "cosine", "linear", "constant", "onecycle"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_every_schedule_can_be_stepped_through_a_short_training(schedule, epochs):
    recipe = recipe_of(f"recipe.schedule={schedule}", f"recipe.epochs={epochs}")
    assert len(rates(recipe)) == epochs


class Norms:
    """Records the norm of the gradient at each step of an optimiser."""

    def __init__(self, method):
        self.norms = []
        make = method.configure_optimizers

        def configure():
            optimizers, schedules = make()
            for optimizer in optimizers:
                optimizer.register_step_post_hook(self.record)  # the step itself computes and clips the gradients
            return optimizers, schedules

        method.configure_optimizers = configure

    def record(self, optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms.append(nn.utils.get_total_norm(gradients).item())


@pytest.mark.parametrize(
    ("name", "overrides", "steps"),
    [
        ("ce", [], 6),
        ("skd", [], 6),
        ("dml", [], 12),
        ("lwkd", [], 12),
        ("fitnet", ["method.training=staged"], 3 * 3),
    ],
)
def test_the_norm_of_every_gradient_is_clipped(name, overrides, steps):
    free, clipped = (method_of(name, *overrides, *clip) for clip in ([], ["recipe.grad_clip=0.01"]))
    free_norms, clipped_norms = Norms(free), Norms(clipped)
    fit(free)
    fit(clipped)
    assert len(free_norms.norms) == len(clipped_norms.norms) >= steps
    assert min(free_norms.norms) > 0.01
    assert max(clipped_norms.norms) <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("name", options("method"))
def test_accumulation_is_refused_where_a_step_is_several_updates(name):
    if isinstance(method_of(name), SeveralOptimizers):
        with pytest.raises(UserError, match=r"recipe\.accumulate=2 is not possible with \w+, only 1"):
            method_of(name, "recipe.accumulate=2")
    else:
        method_of(name, "recipe.accumulate=2")


def test_label_smoothing_of_smoothed_labels_is_refused():
    for overrides in (["ls"], ["ce", "plus=[ls]"]):
        with pytest.raises(UserError, match=r"recipe\.label_smoothing=0\.3 is not possible with ls, only 0"):
            method_of(*overrides, "recipe.label_smoothing=0.3")


@pytest.mark.parametrize("name", [name for name in options("method") if name != "ls"])
def test_label_smoothing_reaches_every_cross_entropy(name, monkeypatch):
    method = method_of(name, "recipe.label_smoothing=0.3")
    method.enter_epoch(method.total_epochs - 1)  # a first stage may have no cross-entropy
    smoothed, original = [], F.cross_entropy

    def recorded(*args, label_smoothing=0.0, **kwargs):
        smoothed.append(label_smoothing)
        return original(*args, label_smoothing=label_smoothing, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", recorded)
    method.batch_losses(batch_of())
    assert set(smoothed) == {0.3}


def test_label_smoothing_spreads_over_all_classes():
    batch = batch_of()
    plain, smoothed = method_of("ce"), method_of("ce", "recipe.label_smoothing=0.3")
    smoothed.load_state_dict(plain.state_dict())
    ce = plain.batch_losses(batch)["ce"]
    uniform = -plain(batch.images).log_softmax(1).mean()
    torch.testing.assert_close(smoothed.batch_losses(batch)["ce"], 0.7 * ce + 0.3 * uniform)

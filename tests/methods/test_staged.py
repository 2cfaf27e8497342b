"""Training in two stages: what is minimised in each, with which optimiser and schedule."""

import pytest
import pytorch_lightning as pl
import torch

from kdbench.config import composed
from kdbench.errors import UserError
from kdbench.methods.base import first_stage
from tests.helpers.methods import batch_of, fit, method_of

STAGED = {"training": "staged"}


def test_first_stage_keeps_its_proportion_and_has_one_epoch_at_least():
    recipe = from_overrides([])["recipe"] | {"lr": 0.05}
    for epochs, expected in ((240, 30), (24, 3), (1, 1)):
        stage = first_stage("x", {"epochs": 0.125, "lr": 0.5}, {**recipe, "epochs": epochs}, None)
        assert (stage.recipe["epochs"], stage.recipe["lr"], stage.recipe["schedule"]) == (expected, 0.025, "constant")


class Watch(pl.Callback):
    """Collects, at the first step of every epoch, terms, learning rate and whether momentum has been gathered."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, method, batch, index):
        if index == 0:
            (optimizer,) = trainer.optimizers
            lr = optimizer.param_groups[0]["lr"]
            self.rows.append((method.stage.name, tuple(method.terms(batch)), lr, bool(optimizer.state), method.pace))


def staged(name, **options):
    """The method with `training=staged`, 4 epochs in the first stage and 2 of the recipe."""
    cfg = from_overrides([f"method={name}", "recipe.epochs=2", "recipe.schedule=step", "recipe.drops=[0.5]"])
    node = {k: v for k, v in cfg["method"].items() if k not in ("name", "needs", "_target_")}
    node |= STAGED | {"first_stage": {"epochs": 2.0, "lr": 0.5}} | options
    plain = method_of(name)
    return type(plain)(**node).attach(plain.student, plain.teacher.network, None, cfg["recipe"])


@pytest.mark.parametrize(("name", "first", "second"), [("fsp", ("flow", ("fsp",)), ("ce",)),
                                                       ("fitnet", ("hint", ("hint",)), ("ce", "soft"))])  # fmt: skip
def test_stages_follow_each_other_with_optimisers_of_their_own(name, first, second):
    method, watch = staged(name), Watch()
    assert method.epochs == 6
    fit(method, watch)
    stage, terms = first
    lr = method.stages[1].recipe["lr"]
    assert watch.rows == [
        *((stage, terms, lr / 2, epoch > 0, (epoch, 4)) for epoch in range(4)),
        ("training", second, pytest.approx(lr), False, (0, 2)),
        ("training", second, pytest.approx(lr / 10), True, (1, 2)),
    ]


def test_a_part_without_gradient_is_not_even_decayed_in_the_first_stage():
    method = staged("fsp")
    classifier = method.student.net.get_classifier()
    before = classifier.weight.detach().clone()

    class Check(pl.Callback):
        def on_train_epoch_end(self, trainer, method):
            assert torch.equal(before, classifier.weight) == (method.stage.name == "flow")

    fit(method, Check())


def test_fitnets_soft_term_falls_linearly_from_4_to_1():
    method = staged("fitnet", second_stage={"temperature": 3.0, "start": 4.0, "end": 1.0})
    method.stages[1].recipe["epochs"] = 4
    batch = batch_of()
    method.student.eval()
    values = []
    for epoch in range(4, 8):
        method.enter(epoch)
        values.append(method.terms(batch)["soft"].item())
    assert [value / values[0] for value in values] == pytest.approx([1, 0.75, 0.5, 0.25])
    student, teacher = method.student(batch.images).logits.double(), method.teacher(batch.images).logits.double()
    soft = -((teacher / 3).softmax(1) * (student / 3).softmax(1).log()).sum(1).mean()
    assert values[0] == pytest.approx(4 * soft.item(), rel=1e-5)


def test_joint_training_is_one_stage_with_both_terms():
    for name in ("fsp", "fitnet"):
        method = staged(name, training="joint")
        assert [stage.name for stage in method.stages] == ["training"]
        assert len(method.terms(batch_of())) == 2


def test_a_staged_loss_cannot_be_added():
    part = staged("fsp")
    method = method_of("kd")
    with pytest.raises(UserError, match=r"plus=\[fsp\] is not possible: .* \(flow\); plus.fsp.training=joint"):
        method.attach(method.student, method.teacher.network, {"fsp": part}, part.stages[1].recipe)

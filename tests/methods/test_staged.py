"""Training in two stages: what is minimised in each, with which optimiser and schedule."""

import pytest
import pytorch_lightning as pl
import torch

from kdbench.errors import UserError
from kdbench.methods.machinery.stages import first_stage
from tests.helpers.methods import batch_of, config_of, fit, method_of

# 4 epochs in the first stage, 2 of the recipe
STAGED = ["method.training=staged", "method.first_stage.epochs=2.0", "method.first_stage.lr=0.5",
          "recipe.schedule=step", "recipe.drops=[0.5]"]  # fmt: skip


@pytest.mark.parametrize(("epochs", "expected"), [(240, 30), (24, 3), (1, 1)])
def test_first_stage_keeps_its_proportion_and_has_at_least_one_epoch(epochs, expected):
    recipe = {**config_of("fsp")["recipe"], "epochs": epochs, "lr": 0.05}
    stage = first_stage("x", {"epochs": 0.125, "lr": 0.5}, recipe, None)
    assert (stage.recipe["epochs"], stage.recipe["lr"], stage.recipe["schedule"]) == (expected, 0.025, "constant")


class Watch(pl.Callback):
    """Collects at the first step of every epoch: stage, losses, learning rate, whether there is momentum, progress."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, method, batch, index):
        if index == 0:
            (optimizer,) = trainer.optimizers
            lr = optimizer.param_groups[0]["lr"]
            losses = tuple(method.batch_losses(batch))
            self.rows.append((method.stage.name, losses, lr, bool(optimizer.state), method.progress))


@pytest.mark.parametrize(("name", "first", "second"), [("fsp", ("flow", ("fsp",)), ("ce",)),
                                                       ("fitnet", ("hint", ("hint",)), ("ce", "soft"))])  # fmt: skip
def test_stages_follow_each_other_with_optimisers_of_their_own(name, first, second):
    method, watch = method_of(name, *STAGED), Watch()
    assert method.total_epochs == 6
    fit(method, watch)
    stage, losses = first
    lr = method.stages[1].recipe["lr"]
    assert watch.rows == [
        *((stage, losses, lr / 2, epoch > 0, (epoch, 4)) for epoch in range(4)),
        ("training", second, pytest.approx(lr), False, (0, 2)),
        ("training", second, pytest.approx(lr / 10), True, (1, 2)),
    ]


def test_a_part_without_gradient_is_not_even_decayed_in_the_first_stage():
    method = method_of("fsp", *STAGED)
    classifier = method.student.net.get_classifier()
    before = classifier.weight.detach().clone()

    class Check(pl.Callback):
        def on_train_epoch_end(self, trainer, method):
            assert torch.equal(before, classifier.weight) == (method.stage.name == "flow")

    fit(method, Check())


def test_fitnets_soft_term_falls_linearly_from_4_to_1():
    method = method_of("fitnet", *STAGED, "method.first_stage.epochs=1.0", "recipe.epochs=4")
    batch = batch_of()
    method.student.eval()
    values = []
    for epoch in range(4, 8):
        method.enter_epoch(epoch)
        values.append(method.batch_losses(batch)["soft"].item())
    assert [value / values[0] for value in values] == pytest.approx([1, 0.75, 0.5, 0.25])
    student, teacher = method.student(batch.images).logits.double(), method.teacher(batch.images).logits.double()
    soft = -((teacher / 3).softmax(1) * (student / 3).softmax(1).log()).sum(1).mean()
    assert values[0] == pytest.approx(4 * soft.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["fsp", "fitnet"])
def test_joint_training_is_one_stage_with_both_losses(name):
    method = method_of(name, *STAGED, "method.training=joint")
    assert [stage.name for stage in method.stages] == ["training"]
    assert len(method.batch_losses(batch_of())) == 2


def test_a_staged_loss_cannot_be_added():
    with pytest.raises(UserError, match=r"plus=\[fsp\] is not possible: .* \(flow\); plus.fsp.training=joint"):
        method_of("kd", "plus=[fsp]")

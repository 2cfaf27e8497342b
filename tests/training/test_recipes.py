"""Recipes in whole runs: accumulation, averages of the weights, continued runs, and what is refused."""

import pytest
import torch
from torch import nn

from kdbench.errors import UserError
from kdbench.models.trained import trained_network
from kdbench.records import weights
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import data_of
from kdbench.training.averaging import Averaging
from kdbench.training.callbacks import History, Stages
from kdbench.training.trainer import make_trainer
from tests.helpers.methods import Loader, batch_of, fit, method_of
from tests.helpers.tiny import same


def rows_of(record, *dropped):
    return [{key: value for key, value in row.items() if key not in ("seconds", *dropped)} for row in record.epochs]


def without_averages(rows):
    return [{key: value for key, value in row.items() if not key.startswith("ema/")} for row in rows]


# ---------------------------------------------------------------- accumulation


def test_the_gradients_of_several_batches_make_one_step(tmp_path):
    method = method_of("ce", "recipe.epochs=1", "recipe.momentum=0", "recipe.weight_decay=0")
    expected = method_of("ce", "recipe.epochs=1")
    expected.load_state_dict(method.state_dict())
    expected.train()
    rate = method.stage.recipe["lr"]
    for batches in ((0, 1), (2,)):  # the loader has three
        for seed in batches:
            (expected.batch_losses(batch_of(seed=seed))["ce"] / 2).backward()
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter -= rate * parameter.grad
                parameter.grad = None
    options = {"device": "cpu", "precision": "32-true", "max_batches": None}
    trainer = make_trainer(options, 1, tmp_path, [Stages()], accumulate=2)
    trainer.fit(method, Loader())
    assert trainer.global_step == 2
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value)


# ---------------------------------------------------------------- the average of the weights


class Students:
    """The student's weights after every batch, of a method in training."""

    def __init__(self):
        self.states = []

    def __call__(self, trainer, method, *_):
        self.states.append({key: value.clone() for key, value in method.student.state_dict().items()})


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("ce", []), ("dml", []), ("one", []), ("fitnet", ["method.training=staged"])],
)
def test_the_average_is_that_of_the_student_after_every_step(name, overrides):
    from pytorch_lightning.callbacks import LambdaCallback

    method, averaging, students = method_of(name, *overrides), Averaging(0.75, exported=True), Students()
    fit(method, averaging, LambdaCallback(on_train_batch_end=students))
    expected = students.states[0]
    for state in students.states[1:]:
        for key, value in state.items():
            expected[key] = 0.75 * expected[key] + 0.25 * value if value.is_floating_point() else value
    assert averaging.updates == len(students.states) == 3 * method.total_epochs
    average = averaging.average.module.state_dict()
    assert set(average) == set(expected)
    for key, value in average.items():
        torch.testing.assert_close(value, expected[key])


def test_the_average_changes_once_for_all_batches_of_a_step(tmp_path):
    method, averaging = method_of("ce"), Averaging(0.75, exported=True)
    options = {"device": "cpu", "precision": "32-true", "max_batches": None}
    trainer = make_trainer(options, method.total_epochs, tmp_path, [Stages(), averaging], accumulate=2)
    trainer.fit(method, Loader())
    assert averaging.updates == trainer.global_step == 2 * method.total_epochs


def test_the_weights_in_training_come_back_bit_for_bit():
    method, averaging = method_of("ce"), Averaging(0.75, exported=True)
    fit(method, averaging)
    before = {key: value.clone() for key, value in method.student.state_dict().items()}
    parameters = list(method.student.parameters())
    with averaging.applied(method.student):
        assert not torch.equal(nn.utils.parameters_to_vector(parameters), torch.cat([
            before[name].flatten() for name, _ in method.student.named_parameters()
        ]))  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in method.student.state_dict().items())


def test_the_average_is_scored_and_exported_by_choice_and_never_changes_the_training(tiny):
    without = tiny("method=ce")
    beside = tiny("method=ce", "recipe.ema=0.5", "recipe.ema_export=false")
    exported = tiny("method=ce", "recipe.ema=0.5")
    assert without_averages(rows_of(beside)) == rows_of(without)
    assert beside.finished["test"] == without.finished["test"]
    ours, theirs, averaged = (weights.read(record.weights, "") for record in (beside, without, exported))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not all(torch.equal(value, theirs[key]) for key, value in averaged.items())
    for last, first in zip(rows_of(beside), rows_of(exported), strict=True):
        assert last["train/ce"] == first["train/ce"]
        for key in ("accuracy", "top5", "nll"):
            assert last[f"ema/{key}"] == first[f"val/{key}"]
        assert last["ema/nll"] != last["val/nll"]
    assert exported.finished["val"]["nll"] == rows_of(exported)[-1]["val/nll"]


def test_the_exported_weights_give_the_recorded_accuracy(tiny, words):
    overrides = ["method=ce", "recipe.ema=0.5", "trainer.test_every=3"]
    record = tiny(*overrides)
    test = record.finished["test"]
    network, hits = trained_network(record).eval(), []
    for batch in data_of(spec_of(words(*overrides))).test_dataloader():
        hits.append((network(batch.images).logits.argmax(1) == batch.labels).float())
    assert torch.cat(hits).mean().item() == pytest.approx(test["accuracy"])
    assert record.epochs[-1]["test/accuracy"] == test["accuracy"]


@pytest.mark.parametrize("name", ["dml", "one"])
def test_only_the_student_is_averaged(tiny, name):
    without, averaged = tiny(f"method={name}").finished, tiny(f"method={name}", "recipe.ema=0.5").finished
    members, others = without["members"]["each"], averaged["members"]["each"]
    assert list(members) == list(others)
    assert members.pop("student") != others.pop("student")
    assert members == others
    assert averaged["test"]["accuracy"] == averaged["members"]["each"].get("student", averaged["test"])["accuracy"]


def test_an_untrained_teacher_of_an_averaged_student(tiny):
    record = tiny("recipe.ema=0.5", "teacher.recipe.stop_after=0", "recipe.epochs=1")
    assert record.finished["teacher"]["test_accuracy"] >= 0


FULL = [
    "recipe.ema=0.9", "recipe.grad_clip=0.5", "recipe.label_smoothing=0.1", "recipe.accumulate=2",
    "teacher.recipe.epochs=1", "teacher.recipe.schedule=constant", "teacher.recipe.final_lr_factor=0",
]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        ["recipe.optimizer=lamb", "recipe.schedule=onecycle"],
        ["recipe.optimizer=lion", "recipe.lr=0.001", "recipe.schedule=cosine", "recipe.final_lr_factor=0.1"],
        ["recipe.optimizer=adan", "recipe.schedule=linear", "recipe.warmup_epochs=1", "teacher.recipe.warmup_epochs=0"],
    ],
)
def test_a_run_that_breaks_off_continues_to_the_same_bits(tiny, tmp_path, monkeypatch, overrides):
    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1 and self.writer.record.name.startswith("kd"):
            raise KeyboardInterrupt

    whole = tiny(*FULL, *overrides)
    rows = rows_of(whole)
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny(*FULL, *overrides, f"outputs={tmp_path}/other")
    continued = tiny(*FULL, *overrides, f"outputs={tmp_path}/other")
    assert same(continued.finished) == same(whole.finished)
    assert rows_of(continued) == rows


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "an optimiser without betas": (["recipe.betas=[0.9,0.99]"], ["recipe.betas=[0.9, 0.99]", "recipe.optimizer=sgd"]),
    "too few betas": (["recipe.optimizer=adan", "recipe.betas=[0.9,0.99]"], ["recipe.betas=", "3 numbers in [0, 1)"]),
    "too large a beta": (["recipe.optimizer=lion", "recipe.betas=[0.9,1]"], ["recipe.betas=[0.9, 1]", "2 numbers"]),
    "betas of words": (["recipe.optimizer=adam", "recipe.betas=[a,b]"], ["recipe.betas=['a', 'b']", "2 numbers"]),
    "a minimum of a schedule without one": (["recipe.final_lr_factor=0.1"], ["recipe.final_lr_factor=0.1", "cosine"]),
    "one cycle after a ramp": (
        ["recipe.schedule=onecycle", "recipe.warmup_epochs=1"], ["recipe.warmup_epochs=1", "onecycle"],
    ),
    "Nesterov without momentum": (["recipe.nesterov=true", "recipe.momentum=0"], ["recipe.nesterov=True", "> 0"]),
    "an average left out that there is not": (["recipe.ema_export=false"], ["recipe.ema_export=False", "recipe.ema"]),
    "the teacher's": (
        ["recipe.schedule=cosine", "recipe.final_lr_factor=0.1", "teacher.recipe.schedule=step"],
        ["teacher.recipe.final_lr_factor=0.1"],
    ),
    "an unknown optimiser": (["recipe.optimizer=lambda"], ["recipe.optimizer=lambda", "nearest: lamb"]),
    "an unknown schedule": (["recipe.schedule=one_cycle"], ["recipe.schedule=one_cycle", "nearest: onecycle"]),
    "no clipping as a number": (["recipe.grad_clip=0"], ["recipe.grad_clip=0", "float > 0 or null"]),
    "no batch for a step": (["recipe.accumulate=0"], ["recipe.accumulate=0", "int >= 1"]),
    "an average of the last weights alone": (["recipe.ema=0"], ["recipe.ema=0", "float in (0, 1) or null"]),
    "labels without a share": (["recipe.label_smoothing=1"], ["recipe.label_smoothing=1", "float in [0, 1)"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_possible_is_refused_in_one_line(words, what):
    overrides, expected = REFUSED[what]
    with pytest.raises(UserError) as caught:
        spec_of(words(*overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


def test_accumulation_is_refused_before_anything_is_trained(tiny, tmp_path):
    with pytest.raises(UserError, match=r"recipe\.accumulate=2 is not possible with DML"):
        tiny("method=dml", "plus=[kd]", "recipe.accumulate=2")
    assert not list(tmp_path.glob("outputs/runs/*"))


def test_an_average_over_more_steps_than_there_are_is_warned_of(tiny, capsys):
    tiny("method=ce", "recipe.ema=0.999")
    output = " ".join(capsys.readouterr().out.split())
    assert "recipe.ema=0.999 averages over about 1000 steps, and the training has 12: 99 % of the average" in output
    tiny("method=ce", "recipe.ema=0.5")
    assert "averages over" not in capsys.readouterr().out

"""Lightning's extras of the group `trainer`: the user's own callbacks, a profiler, deterministic algorithms."""

import os
import sys

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import UserError
from kdbench.models.trained import trained_network
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import data_of
from kdbench.training.conduct import conduct

MODULE = '''"""Callbacks."""
from pathlib import Path

import pytorch_lightning as pl
import torch


class Shrink(pl.Callback):
    """Multiplies the weights of the last layer at the end of every epoch, and counts the epochs."""

    def __init__(self, by, every=1):
        if by == 0:
            raise ValueError("by must not be 0")
        self.by, self.every, self.epochs = by, every, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)
        if trainer.current_epoch % self.every == 0:
            with torch.no_grad():
                pl_module.student.classifier.weight.mul_(self.by)
        (Path(trainer.default_root_dir) / "epochs.txt").write_text(str(self.epochs))

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict):
        self.epochs = state_dict["epochs"]


class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


class State(pl.Callback):
    def state_dict(self):
        return {"function": State}


class Scatter(pl.Callback):
    """Calls an operation that torch has no deterministic algorithm for."""

    def on_train_batch_start(self, *_):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)


class Deterministic(pl.Callback):
    """Notes what torch uses during the training."""

    def on_train_epoch_end(self, trainer, pl_module):
        used = torch.are_deterministic_algorithms_enabled()
        (Path(trainer.default_root_dir) / "deterministic.txt").write_text(str(used))


def function():
    raise RuntimeError("called")
'''
SHRINK = "trainer.callbacks={mine:{_target_:my_callbacks.Shrink,by:0.5}}"


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """Writes the module of the callbacks anew."""

    def write(text):
        (tmp_path / "my_callbacks.py").write_text(text)
        sys.modules.pop("my_callbacks", None)

    monkeypatch.syspath_prepend(tmp_path)
    write(MODULE)
    yield write
    sys.modules.pop("my_callbacks", None)


def refusal(tiny, *overrides):
    with pytest.raises(UserError) as caught:
        tiny(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights_of(record):
    return record.weights.read_bytes()


def test_a_callback_acts_on_the_student_alone(tiny, words):
    record = tiny("method=kd", SHRINK)
    assert (record.directory / "epochs.txt").read_text() == "[0, 1, 2]"
    spec = spec_of(words("method=kd", SHRINK))
    teacher = spec.dependencies["teacher"]
    assert not (teacher.directory / "epochs.txt").exists()
    assert teacher.id == spec_of(words("method=kd")).dependencies["teacher"].id
    assert weights_of(record) != weights_of(tiny("method=kd"))


def test_the_scores_of_an_epoch_are_those_of_the_weights_that_the_callback_left(tiny, words):
    words_of_run = "method=ce", "trainer.callbacks={mine:{_target_:my_callbacks.Shrink,by:1e-30}}", "recipe.epochs=1"
    record = tiny(*words_of_run)
    answer = trained_network(record).classifier.bias.argmax()  # the same for every image: the weights are almost 0
    labels = torch.cat([batch.labels for batch in data_of(spec_of(words(*words_of_run))).val_dataloader()])
    assert record.epochs[0]["val/accuracy"] == pytest.approx((labels == answer).double().mean().item())


def test_a_callback_and_its_arguments_are_part_of_the_identity(words, module):
    def spec(*overrides):
        return spec_of(words("method=ce", *overrides))

    other = SHRINK.replace("0.5", "0.25")
    without, one = spec(), spec(SHRINK)
    assert "callbacks" not in without.identity.facts
    assert spec("trainer.callbacks={}").id == spec("trainer.callbacks=null").id == without.id
    assert one.identity.facts["callbacks"] == {"mine": {"_target_": "my_callbacks.Shrink", "by": 0.5}}
    assert set(one.identity.facts["code"]) == {"method", "callbacks.mine"}
    dotted = spec("+trainer.callbacks.mine._target_=my_callbacks.Shrink", "+trainer.callbacks.mine.by=0.5")
    assert dotted.id == one.id
    module(MODULE + "# a comment\n")
    assert spec(SHRINK).id == one.id
    module(MODULE + "OTHER = 1\n")
    assert len({without.id, one.id, spec(other).id, spec(SHRINK).id}) == 4


def test_a_trainer_of_a_plugin_lists_callbacks(tmp_path, monkeypatch, words):
    conf = tmp_path / "plugin" / "conf" / "trainer"
    conf.mkdir(parents=True)
    text = "# Mine\ndefaults: [cpu, _self_]\ncallbacks:\n  mine:\n    _target_: my_callbacks.Shrink\n    by: 0.5\n"
    (conf / "mine.yaml").write_text(text)
    monkeypatch.setenv("KDBENCH_PLUGINS", str(tmp_path / "plugin"))
    options = words("method=ce")
    named = spec_of([word for word in options if not word.startswith("trainer")] + ["trainer=mine"])
    assert named.id == spec_of(words("method=ce", SHRINK)).id


def test_a_run_that_was_interrupted_continues_with_the_state_of_its_callbacks(words, tmp_path):
    both = "trainer.callbacks={mine:{_target_:my_callbacks.Shrink,by:0.5},stop:{_target_:my_callbacks.Stop}}"
    whole = conduct(spec_of(words("method=ce", SHRINK)))
    spec = spec_of(words("method=ce", both))
    with pytest.raises(KeyboardInterrupt):
        conduct(spec)
    assert (spec.directory / "epochs.txt").read_text() == "[0, 1]"
    # the callback that interrupts is gone when the run continues; the source is read when the spec is made
    import my_callbacks

    del my_callbacks.Stop.on_train_epoch_start
    record = conduct(spec)
    assert (record.directory / "epochs.txt").read_text() == "[0, 1, 2]"
    continued, unbroken = load_file(record.weights), load_file(whole.weights)
    assert all(torch.equal(continued[key], unbroken[key]) for key in unbroken)
    assert record.finished["test"] == whole.finished["test"]


REFUSED = {
    "trainer.callbacks={x:{_target_:os.system}}": [
        "trainer.callbacks.x._target_=os.system is not allowed", "subclass of pytorch_lightning.Callback",
    ],
    "trainer.callbacks={x:{_target_:my_callbacks.function}}": [
        "trainer.callbacks.x._target_=my_callbacks.function is not allowed", "subclass of pytorch_lightning.Callback",
    ],
    "trainer.callbacks={x:3}": ["trainer.callbacks.x=3 is not allowed", "_target_"],
    "trainer.callbacks={x:{by:1}}": ["trainer.callbacks.x={'by': 1} is not allowed", "_target_"],
    "trainer.callbacks={1:{_target_:my_callbacks.Shrink}}": ["trainer.callbacks.1=", "is not allowed"],
    "trainer.callbacks=3": ["trainer.callbacks=3 is not allowed"],
    "trainer.callbacks={x:{_target_:absent.Mine}}": ["trainer.callbacks.x", "absent.Mine", "no module absent"],
    "trainer.callbacks={x:{_target_:my_callbacks.Absent}}": ["trainer.callbacks.x", "does not define Absent"],
    "trainer.callbacks={x:{_target_:my_callbacks.Shrink}}": ["trainer.callbacks.x", "my_callbacks.py:8", "'by'"],
    "trainer.callbacks={x:{_target_:my_callbacks.Shrink,by:1,buy:2}}": ["my_callbacks.py:8", "'buy'"],
    "trainer.callbacks={x:{_target_:my_callbacks.Shrink,by:0}}": ["by must not be 0", "my_callbacks.py:13"],
    "trainer.callbacks={x:{_target_:pytorch_lightning.callbacks.RichProgressBar}}": ["not possible", "RichProgressBar"],
    "trainer.profiler=xla": ["trainer.profiler=xla is not allowed", "simple, advanced, pytorch"],
    "trainer.deterministic=warn": ["trainer.deterministic=warn is not allowed"],
}  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_not_possible_is_one_line_before_a_teacher_is_trained(tiny, tmp_path, override):
    message = refusal(tiny, "method=kd", override)
    assert [part for part in REFUSED[override] if part not in message] == []
    assert not list(tmp_path.glob("outputs/runs/*"))


def test_an_import_that_fails_is_one_line_with_its_place(tiny, module):
    module("import pytorch_lightning as pl\n\n\nclass Shrink(pl.Callback):\n    size = 1 / 0\n")
    message = refusal(tiny, "method=ce", SHRINK)
    assert "trainer.callbacks.mine" in message
    assert "ZeroDivisionError" in message
    assert "my_callbacks.py:5" in message


def test_two_callbacks_of_one_class_with_a_state_need_keys_of_their_own(tiny):
    two = "trainer.callbacks={a:{_target_:my_callbacks.Shrink,by:1},b:{_target_:my_callbacks.Shrink,by:2}}"
    assert "state_key" in refusal(tiny, "method=ce", two)


def test_a_state_that_a_checkpoint_could_not_give_back_is_refused_at_the_end_of_the_first_epoch(tiny, tmp_path):
    message = refusal(tiny, "method=ce", "trainer.callbacks={mine:{_target_:my_callbacks.State}}")
    assert "trainer.callbacks.mine" in message
    assert "state_dict" in message
    (run,) = tmp_path.glob("outputs/runs/*")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 0


def test_a_callback_that_needs_a_logger_of_lightning_is_refused_in_one_line(tiny):
    monitor = "trainer.callbacks={lr:{_target_:pytorch_lightning.callbacks.LearningRateMonitor}}"
    assert "logger" in refusal(tiny, "method=ce", monitor)


@pytest.mark.parametrize("kind", ["simple", "advanced", "pytorch"])
def test_a_profiler_reports_to_the_directory_of_the_run(tiny, words, caplog, kind):
    record = tiny("method=ce", "recipe.epochs=1", f"trainer.profiler={kind}")
    report = record.directory / "fit-profile.txt"
    assert "optimizer_step" in report.read_text()
    assert f"profile: {report}" in record.log.read_text()
    plain = spec_of(words("method=ce", "recipe.epochs=1"))
    assert plain.id == record.id
    assert [path.name for path in record.directory.parent.parent.glob("*")] == ["runs"]


def test_deterministic_algorithms_are_used_for_one_run_and_known_to_its_identity(tiny, words, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    note = "trainer.callbacks={note:{_target_:my_callbacks.Deterministic}}"
    plain, strict = (tiny("method=ce", note, f"trainer.deterministic={value}") for value in ("false", "true"))
    assert (plain.directory / "deterministic.txt").read_text() == "False"
    assert (strict.directory / "deterministic.txt").read_text() == "True"
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert strict.finished["facts"]["deterministic"] is True
    assert "deterministic" not in plain.finished["facts"]
    assert plain.id != strict.id


def test_an_operation_without_a_deterministic_algorithm_ends_the_run_in_one_line(tiny):
    scatter = "trainer.callbacks={mine:{_target_:my_callbacks.Scatter}}"
    message = refusal(tiny, "method=ce", scatter, "trainer.deterministic=true")
    assert "trainer.deterministic=true is not possible" in message
    assert "put_" in message
    assert not torch.are_deterministic_algorithms_enabled()
    tiny("method=ce", scatter)

"""The story of a run: found, continued, done; what it leaves behind."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import RunFailed
from kdbench.files import digest, read_lines
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from tests.helpers.tiny import TIMES, TINY, same


def test_record_is_complete(whole):
    _, record = whole
    result = record.finished
    names = {path.name for path in record.directory.iterdir()}
    assert names >= {"config.yaml", "status.json", "metrics.jsonl", "result.json", "student.safetensors", "train.log",
                     "env.json", "checkpoints"}  # fmt: skip
    status = record.status
    assert (status["state"], status["epoch"], status["epochs"]) == ("finished", 3, 3)
    assert 0 <= result["test"]["accuracy"] <= result["test"]["top5"] == 1
    assert result["test"]["nll"] > 0
    assert result["val"]["accuracy"] is not None
    assert result["best_on_test"] == {"accuracy": None, "epoch": None, "selection_rule": False}
    assert result["id"] == record.id
    assert result["config"]["method"]["name"] == "kd"
    assert result["teacher"]["name"] == "resnet14"
    assert result["sizes"] == {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": [0.5], "std": [0.33]}
    assert result["cost"]["parameters"] > 0 == result["cost"]["extra_parameters"]
    assert all(result["cost"][key] > 0 for key in TIMES | {"flops"})
    assert len(result["labels_hash"]) == 64
    assert digest(record.weights) == result["weights_sha256"]
    rows = record.epochs
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/ce"] + rows[-1]["train/kd"], rel=1e-6)
    assert rows[-1]["val/accuracy"] == result["val"]["accuracy"]


def test_teacher_is_a_run_of_its_own_and_equals_the_network_alone(whole):
    spec, record = whole
    alone = spec_of([*TINY, f"outputs={spec.config['outputs']}", "method=ce", "student=resnet14"])
    assert alone.id == record.finished["teacher"]["id"]
    assert alone.record.finished["test"]["accuracy"] == record.finished["teacher"]["test_accuracy"]


def test_exported_student_gives_the_recorded_accuracy(whole):
    import timm

    from kdbench.training.assemble import data_of

    spec, record = whole
    net = timm.create_model("cifar_resnet8", num_classes=4, in_chans=1)
    net.load_state_dict(load_file(record.weights))
    net.eval()
    data = data_of(spec)
    mean, std = (torch.tensor(record.finished["sizes"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    hits = total = 0
    with torch.no_grad():
        for batch in data.test_dataloader():
            hits += (net((batch.images - mean) / std).argmax(1) == batch.labels).sum().item()
            total += len(batch.labels)
    assert hits / total == pytest.approx(record.finished["test"]["accuracy"])


def test_finished_run_is_not_trained_again(whole, monkeypatch):
    spec, record = whole
    monkeypatch.setattr("kdbench.training.distill.fit", lambda *_: pytest.fail("trained again"))
    assert conduct(spec).result == record.result


def test_force_runs_again_with_the_same_outcome_and_keeps_the_old(whole):
    spec, record = whole
    again = conduct(spec_of([*TINY, f"outputs={spec.config['outputs']}", "force=true"]))
    assert same(again.finished) == same(record.finished)
    assert again.finished["cost"]["train_seconds"] != record.finished["cost"]["train_seconds"]
    assert list((record.directory / "previous").glob("*/result.json"))


def test_same_command_elsewhere_gives_the_same_bits(whole, tiny):
    assert same(tiny().finished) == same(whole[1].finished)


def test_only_the_teachers_of_a_run_are_trained_when_asked_for(tiny):
    record = tiny("stage=teachers", "recipe.epochs=1")
    assert record.result is None
    assert [path.name.split("-")[0] for path in record.directory.parent.iterdir()] == ["ce"]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_that_breaks_off_continues_to_the_same_bits(whole, tiny, monkeypatch, epoch):
    from kdbench.training.callbacks import History

    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == epoch and self.writer.record.name.startswith("kd"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny()
    run = tiny()
    assert same(run.result) == same(whole[1].finished)
    drop = {"seconds"}
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in r.epochs] for r in (run, whole[1])]
    assert rows[0] == rows[1]


def test_a_run_that_breaks_off_after_its_last_epoch(whole, tiny, monkeypatch):
    def break_off(path, *_):
        raise KeyboardInterrupt

    tiny("method=ce", "student=resnet14")  # the teacher
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kdbench.records.weights.save", break_off)
        tiny()
    assert same(tiny().result) == same(whole[1].finished)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(whole, tiny, tmp_path, monkeypatch, capsys):
    from kdbench.training.callbacks import History

    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        if trainer.current_epoch == 2 and self.writer.record.name.startswith("kd"):
            raise KeyboardInterrupt
        original(self, trainer, module)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny()
    (first, second) = sorted(tmp_path.glob("outputs/runs/kd-*/checkpoints/*.ckpt"))
    second.write_bytes(second.read_bytes()[:-100])
    capsys.readouterr()
    assert same(tiny().result) == same(whole[1].finished)
    said = capsys.readouterr().out
    assert "is damaged: set aside" in said
    assert "continuing at epoch 2 of 3" in said
    assert second.with_suffix(".damaged").exists()
    assert first.name.startswith("000000-")


def test_a_full_disk_fails_the_run_with_the_reason_and_the_last_checkpoint_survives(whole, tiny, tmp_path, monkeypatch):
    import errno

    import pytorch_lightning as pl

    original = pl.Trainer.save_checkpoint

    def full(self, path, *args, **kwargs):
        if self.current_epoch == 1 and "/kd-" in str(path):
            path.write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="No space left"):
        patch.setattr(pl.Trainer, "save_checkpoint", full)
        tiny()
    (directory,) = tmp_path.glob("outputs/runs/kd-*")
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "failed"
    assert "No space left on device" in status["reason"]
    assert [path.name[:6] for path in (directory / "checkpoints").iterdir()] == ["000000"]
    assert same(tiny().result) == same(whole[1].finished)


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_term(tiny, tmp_path):
    with pytest.raises(RunFailed, match="loss term 'ce' is not finite at epoch"):
        tiny("method=ce", "recipe.lr=1e30")
    (file,) = tmp_path.glob("outputs/runs/*/status.json")
    assert json.loads(file.read_text())["state"] == "failed"


def test_best_on_test_is_recorded_only_when_asked_and_never_selects(whole, tiny):
    result = tiny("trainer.test_every=1").result
    rows = result["best_on_test"]
    assert rows["selection_rule"] is False
    assert rows["accuracy"] >= result["test"]["accuracy"]
    assert same({**result, "best_on_test": None}) == same({**whole[1].finished, "best_on_test": None})


def test_without_validation_split_nothing_is_selected(tiny):
    result = tiny("method=ce", "dataset.val_fraction=0").result
    assert set(result["val"].values()) == {None}


def test_a_loss_added_to_another_method(tiny):
    run = tiny("method=ce", "plus=[kd]", "recipe.epochs=1")
    row = list(read_lines(run.metrics))[-1]
    assert run.name.startswith("ce+kd-resnet14-resnet8")
    assert row["train/loss"] == pytest.approx(row["train/ce"] + row["train/plus_kd"], rel=1e-6)


def test_a_training_can_stop_early_or_before_it_begins(tiny):
    whole, early, none = (tiny("method=ce", *words) for words in ([], ["recipe.stop_after=2"], ["recipe.stop_after=0"]))
    rows = [[{**row, "seconds": 0} for row in read_lines(run.metrics)] for run in (whole, early)]
    assert rows[1] == rows[0][:2]
    assert not none.metrics.exists() or not list(read_lines(none.metrics))
    result = none.result
    assert result["val"] == {"accuracy": None, "top5": None, "nll": None}
    assert result["cost"]["train_seconds"] == 0
    assert same(none.result) != same(early.result) != same(whole.result)
    assert same(tiny("method=ce", "recipe.stop_after=2", "force=true").result) == same(early.result)

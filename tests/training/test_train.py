"""The whole story of a run: found, continued, done; teachers; records; bad input."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.training import signals
from kdbench.config import composed
from kdbench.errors import RunFailed, UserError
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from kdbench.files import digest, read_lines
from tests.helpers.tiny import TINY

TIMES = {"train_seconds", "teacher_seconds", "images_per_second", "peak_memory_bytes"}


def same(result):
    """What a repeated or continued run must repeat bit for bit."""
    kept = {key: value for key, value in result.items() if key not in ("cost", "config")}
    kept["cost"] = {key: value for key, value in result["cost"].items() if key not in TIMES}
    return kept


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One undisturbed KD run: the run and its result."""
    outputs = tmp_path_factory.mktemp("whole")
    cfg = from_overrides([*TINY, f"outputs={outputs}"])
    run = conduct(cfg)
    return run, run.result


def test_record_is_complete(whole):
    run, result = whole
    names = {path.name for path in run.directory.iterdir()}
    assert names >= {"config.yaml", "status.json", "metrics.jsonl", "result.json", "student.safetensors", "train.log",
                     "env.json", "checkpoints"}  # fmt: skip
    status = json.loads((run.directory / "status.json").read_text())
    assert (status["state"], status["epoch"], status["epochs"]) == ("finished", 3, 3)
    assert 0 <= result["test"]["accuracy"] <= result["test"]["top5"] == 1
    assert result["test"]["nll"] > 0
    assert result["val"]["accuracy"] is not None
    assert result["best_on_test"] == {"accuracy": None, "epoch": None, "selection_rule": False}
    assert result["id"] == run.id
    assert result["config"]["method"]["name"] == "kd"
    assert result["teacher"]["name"] == "resnet14"
    assert result["cost"]["parameters"] > 0 == result["cost"]["extra_parameters"]
    assert all(result["cost"][key] > 0 for key in TIMES | {"flops"})
    assert len(result["labels_hash"]) == 64
    assert digest(run.weights) == result["weights_sha256"]
    rows = list(read_lines(run.metrics))
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["train/loss"] == pytest.approx(rows[-1]["train/ce"] + rows[-1]["train/kd"], rel=1e-6)
    assert rows[-1]["val/accuracy"] == result["val"]["accuracy"]


def test_teacher_is_a_run_of_its_own_and_equals_the_network_alone(whole):
    run, result = whole
    cfg = from_overrides([*TINY, f"outputs={run.directory.parents[1]}", "method=ce", "student=resnet14"])
    alone = run_of(cfg)
    assert alone.id == result["teacher"]["id"]
    assert alone.result["test"]["accuracy"] == result["teacher"]["test_accuracy"]


def test_exported_student_gives_the_recorded_accuracy(whole):
    import timm

    from kdbench.distill import data_of

    run, result = whole
    net = timm.create_model("cifar_resnet8", num_classes=4, in_chans=1)
    net.load_state_dict(load_file(run.weights))
    net.eval()
    data = data_of(result["config"]).prepare()
    mean, std = (torch.tensor(result["normalisation"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    hits = total = 0
    with torch.no_grad():
        for batch in data.test_dataloader():
            hits += (net((batch.images - mean) / std).argmax(1) == batch.labels).sum().item()
            total += len(batch.labels)
    assert hits / total == pytest.approx(result["test"]["accuracy"])


def test_finished_run_is_not_trained_again(whole, monkeypatch):
    _, result = whole
    monkeypatch.setattr("kdbench.distill.fit", lambda *_: pytest.fail("trained again"))
    assert conduct(result["config"]).result == result


def test_force_runs_again_with_the_same_outcome_and_keeps_the_old(whole):
    run, result = whole
    again = conduct({**result["config"], "force": True}).result
    assert same(again) == same(result)
    assert again["cost"]["train_seconds"] != result["cost"]["train_seconds"]
    assert list((run.directory / "previous").glob("*/result.json"))


def test_same_command_elsewhere_gives_the_same_bits(whole, tiny):
    _, result = whole
    assert same(tiny().result) == same(result)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_that_breaks_off_continues_to_the_same_bits(whole, tiny, monkeypatch, epoch):
    from kdbench.training.callbacks import History

    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == epoch and self.run.name.startswith("kd"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny()
    run = tiny()
    assert same(run.result) == same(whole[1])
    drop = {"seconds"}
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in read_lines(r.metrics)] for r in (run, whole[0])]
    assert rows[0] == rows[1]


def test_a_run_that_breaks_off_after_its_last_epoch(whole, tiny, monkeypatch):
    def break_off(path, *_):
        raise KeyboardInterrupt

    tiny("method=ce", "student=resnet14")  # the teacher
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kdbench.records.weights.save", break_off)
        tiny()
    assert same(tiny().result) == same(whole[1])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(whole, tiny, tmp_path, monkeypatch, capsys):
    from kdbench.training.callbacks import History

    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        if trainer.current_epoch == 2 and self.run.name.startswith("kd"):
            raise KeyboardInterrupt
        original(self, trainer, module)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny()
    (first, second) = sorted(tmp_path.glob("outputs/runs/kd-*/checkpoints/*.ckpt"))
    second.write_bytes(second.read_bytes()[:-100])
    capsys.readouterr()
    assert same(tiny().result) == same(whole[1])
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
    assert same(tiny().result) == same(whole[1])


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
    assert same({**result, "best_on_test": None}) == same({**whole[1], "best_on_test": None})


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


# ---------------------------------------------------------------------------------------------- teachers


def test_a_teacher_with_random_weights(tiny):
    run = tiny("teacher.recipe.stop_after=0")
    assert run.result["teacher"]["test_accuracy"] < 0.6  # chance is 0.25
    assert run.result["config"]["recipe"]["stop_after"] is None
    assert len(list(read_lines(run.metrics))) == 3


def test_a_teacher_of_the_students_kind(tiny):
    run = tiny("teacher=self")
    assert run.result["teacher"]["name"] == "resnet8"
    assert run.result["teacher"]["id"] == tiny("method=ce").id


def test_a_teacher_learns_from_the_students_data_or_from_clean_data(tiny):
    corrupted = ["noise=symmetric", "noise.rate=0.4", "imbalance=longtail", "imbalance.factor=2", "recipe.epochs=1"]
    alone = ["method=ce", "student=resnet14", "recipe.epochs=1"]
    same_data, clean = tiny(*corrupted), tiny(*corrupted, "teacher.condition=clean")
    assert same_data.id != clean.id
    assert same_data.result["teacher"]["id"] == tiny(*alone, *corrupted).id
    assert clean.result["teacher"]["id"] == tiny(*alone).id
    assert clean.result["labels_hash"] == same_data.result["labels_hash"]
    assert "resnet14_clean-" in clean.name
    assert "_clean" not in same_data.name
    alike = tiny("teacher.condition=clean", "recipe.epochs=1")
    assert alike.identity == tiny("recipe.epochs=1").identity  # no noise, no imbalance


def test_shuffled_answers_make_another_run(whole, tiny):
    by_batch, by_class = (tiny(f"teacher.shuffle={how}") for how in ("batch", "class"))
    assert len({whole[0].id, by_batch.id, by_class.id}) == 3
    losses = [list(read_lines(run.metrics))[-1]["train/kd"] for run in (whole[0], by_batch, by_class)]
    assert len(set(losses)) == 3
    assert same(tiny("teacher.shuffle=batch", "force=true").result) == same(by_batch.result)


def test_an_epoch_that_gives_reason_is_warned_of_once(tiny, monkeypatch, capsys):
    monkeypatch.setattr("kdbench.methods.skd.SKD.review", lambda self, watched: f"agreement {watched['agreement']:.1f}")
    tiny("method=skd")
    assert capsys.readouterr().out.count("warning: skd-resnet14-resnet8-fake-s0, epoch 1: agreement ") == 1


def save(path, result_run, **changes):
    state = load_file(result_run.weights)
    state |= changes
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "model": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def teacher_run(whole):
    run, _ = whole
    cfg = from_overrides([*TINY, f"outputs={run.directory.parents[1]}", "method=ce", "student=resnet14"])
    return run_of(cfg)


@pytest.mark.parametrize("name", ["t.safetensors", "t.pth"])
def test_teacher_from_a_file_is_measured(whole, teacher_run, tiny, tmp_path, name, capsys):
    path = save(tmp_path / name, teacher_run)
    result = tiny(f"teacher.checkpoint={path}").result
    assert result["teacher"]["test_accuracy"] == whole[1]["teacher"]["test_accuracy"]
    assert result["teacher"]["id"].startswith("file-")
    assert result["test"] == whole[1]["test"]  # the same teacher, so the same student
    assert f"test accuracy {100 * result['teacher']['test_accuracy']:.2f} %" in capsys.readouterr().out


def test_teacher_input_is_normalised_as_it_was_trained(teacher_run, tiny, tmp_path):
    path = save(tmp_path / "t.safetensors", teacher_run)
    words = [f"teacher.checkpoint={path}", "dataset.normalize=false", "recipe.epochs=1"]
    right = tiny(*words, "teacher.mean=[0.5]", "teacher.std=[0.33]").result
    assert right["teacher"]["test_accuracy"] == teacher_run.result["test"]["accuracy"]
    assert right["normalisation"] == {"mean": [0.0], "std": [1.0]}


def test_a_teacher_that_is_too_bad_stops_the_run(tiny):
    with pytest.raises(UserError, match=r"below teacher\.min_accuracy=1"):
        tiny("teacher.min_accuracy=1.0", "teacher.recipe.epochs=1", "teacher.recipe.lr=1e-6")


def test_files_that_are_no_teacher(teacher_run, tiny, tmp_path):
    def refused(path, *more):
        with pytest.raises(UserError) as caught:
            tiny(f"teacher.checkpoint={path}", *more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be read" in refused(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "neither safetensors nor a plain state dict" in refused(tmp_path / "text.pth")
    torch.save(teacher_run.result, tmp_path / "code.pth")
    assert "could run code" in refused(tmp_path / "code.pth")
    assert "holds no state dict" in refused(_saved(tmp_path / "list.pth", [1, 2]))
    good = save(tmp_path / "t.safetensors", teacher_run)
    assert "has 4 classes, but the data set has 6" in refused(good, "dataset.num_classes=6")
    assert "is of another network" in refused(good, "teacher=resnet20")
    assert "is of another network" in refused(good, "teacher=wrn_16_1")
    half = tmp_path / "half.safetensors"
    half.write_bytes(good.read_bytes()[:5000])
    assert "neither safetensors nor" in refused(half)


def _saved(path, content):
    torch.save(content, path)
    return path


def test_a_damaged_teacher_in_the_store_is_refused(tiny, tmp_path):
    tiny("recipe.epochs=1", "method=ce", "student=resnet14")
    (weights,) = tmp_path.glob("outputs/runs/ce-resnet14-*/student.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match=r"is not what its result\.json describes"):
        tiny("recipe.epochs=1")


# ---------------------------------------------------------------------------------------------- as a process


def launch(words, **how):
    command = [sys.executable, "-m", "kdbench.train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)


def test_kill_9_and_the_same_command_again(whole, words, tmp_path):
    for target in ("ce", "kd"):  # the teacher's training, then the student's
        process = launch(words())
        deadline = time.monotonic() + 100
        while process.poll() is None and not list(tmp_path.glob(f"outputs/runs/{target}-*/checkpoints/*.ckpt")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    process = launch(words())
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    (path,) = tmp_path.glob("outputs/runs/kd-*/result.json")
    assert same(json.loads(path.read_text())) == same(whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_noted_and_says_how_to_go_on(words, tmp_path, number):
    process = launch(words("recipe.epochs=500"))
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("outputs/runs/ce-*/checkpoints/*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output
    assert "Traceback" not in output
    (file,) = tmp_path.glob("outputs/runs/ce-*/status.json")
    assert json.loads(file.read_text())["state"] == "interrupted"


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_whose_exception_was_dropped_stops_the_run_at_the_end_of_the_epoch(whole, tiny, number, kind):
    tiny("method=ce", "student=resnet14")  # the teacher
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        signals.arrive(number, None)
    with pytest.raises(kind):
        tiny()
    run = tiny()
    assert len(list(run.checkpoints.glob("*.ckpt"))) == 2
    assert same(run.result) == same(whole[1])


def test_two_processes_want_the_same_run(whole, words, tmp_path):
    processes = [launch(words()) for _ in range(2)]
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("waiting for" in output for output in outputs) >= 1
    assert sum("already done" in output for output in outputs) >= 1
    (path,) = tmp_path.glob("outputs/runs/kd-*/result.json")
    assert same(json.loads(path.read_text())) == same(whole[1])
    assert len(list(tmp_path.glob("outputs/runs/*"))) == 2


def test_a_sweep_in_one_process(words, tmp_path):
    process = launch(["-m", "method=ce,kd", *words("recipe.epochs=1", "trainer.progress=lines")])
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 3  # teacher, alone, distilled


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_half_precision_on_the_cpu_is_refused_not_replaced(tiny):
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed needs a CUDA device"):
        tiny("trainer.precision=16-mixed")


def test_bfloat16_trains_and_is_another_run(whole, tiny):
    run = tiny("trainer.precision=bf16-mixed")
    assert run.id != whole[0].id
    assert run.result["test"]["nll"] != whole[1]["test"]["nll"]


@pytest.mark.slow
def test_compiled_networks_learn_the_same(whole, tiny):
    run = tiny("trainer.compile=true")
    assert run.id == whole[0].id
    assert run.result["test"]["nll"] == pytest.approx(whole[1]["test"]["nll"], rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said_before_anything_is_touched(words, tmp_path):
    process = launch(words("trainer=gpu"))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert output.startswith("error: trainer.device=gpu")
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

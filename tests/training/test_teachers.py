"""Where a teacher comes from: trained by itself, found again, loaded from a file."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.errors import UserError
from kdbench.files import read_lines
from kdbench.models.build import build
from kdbench.specs.resolve import spec_of
from kdbench.training.teachers import network_from_file
from tests.helpers.tiny import TINY, same


def test_a_teacher_with_random_weights(tiny):
    run = tiny("teacher.recipe.stop_after=0")
    assert run.finished["teacher"]["test_accuracy"] < 0.6  # chance is 0.25
    assert run.finished["config"]["recipe"]["stop_after"] is None
    assert len(list(read_lines(run.metrics))) == 3


def test_a_teacher_of_the_students_kind(tiny):
    run = tiny("teacher=self")
    assert run.finished["teacher"]["name"] == "resnet8"
    assert run.finished["teacher"]["id"] == tiny("method=ce").id


def test_a_teacher_learns_from_the_students_data_or_from_clean_data(tiny):
    corrupted = ["noise=symmetric", "noise.rate=0.4", "imbalance=longtail", "imbalance.factor=2", "recipe.epochs=1"]
    alone = ["method=ce", "student=resnet14", "recipe.epochs=1"]
    same_data, clean = tiny(*corrupted), tiny(*corrupted, "teacher.condition=clean")
    assert same_data.id != clean.id
    assert same_data.finished["teacher"]["id"] == tiny(*alone, *corrupted).id
    assert clean.finished["teacher"]["id"] == tiny(*alone).id
    assert clean.finished["labels_hash"] == same_data.finished["labels_hash"]
    assert "resnet14_clean-" in clean.name
    assert "_clean" not in same_data.name
    alike = tiny("teacher.condition=clean", "recipe.epochs=1")
    assert alike.directory == tiny("recipe.epochs=1").directory  # no noise, no imbalance


def test_shuffled_answers_make_another_run(whole, tiny):
    by_batch, by_class = (tiny(f"teacher.shuffle={order}") for order in ("batch", "class"))
    assert len({whole[0].id, by_batch.id, by_class.id}) == 3
    losses = [record.epochs[-1]["train/kd"] for record in (whole[1], by_batch, by_class)]
    assert len(set(losses)) == 3
    once = same(by_batch.finished)
    assert same(tiny("teacher.shuffle=batch", "force=true").finished) == once


def test_an_epoch_that_gives_reason_is_warned_of_once(tiny, monkeypatch, capsys):
    monkeypatch.setattr(
        "kdbench.methods.skd.SKD.warning", lambda self, watched: f"agreement {watched['agreement']:.1f}"
    )
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


@pytest.mark.parametrize("name", ["t.safetensors", "t.pth"])
def test_teacher_from_a_file_is_measured(whole, teacher_record, tiny, tmp_path, name, capsys):
    path = save(tmp_path / name, teacher_record)
    result = tiny(f"teacher.checkpoint={path}").result
    assert result["teacher"]["test_accuracy"] == whole[1].finished["teacher"]["test_accuracy"]
    assert result["teacher"]["id"].startswith("file-")
    assert result["test"] == whole[1].finished["test"]  # the same teacher, so the same student
    output = capsys.readouterr().out
    assert f"test accuracy {100 * result['teacher']['test_accuracy']:.2f} %" in output
    mapped = f"teacher.checkpoint={path}: read model, prefix module. removed"
    assert (mapped in output.replace("\n", " ")) == (name == "t.pth")


def test_a_finished_run_is_no_answer_if_its_teacher_is_not_good_enough(tiny):
    accuracy = tiny("method=kd").finished["teacher"]["test_accuracy"]
    assert tiny("method=kd", f"teacher.min_accuracy={accuracy}").finished
    with pytest.raises(UserError, match=r"below teacher\.min_accuracy=1"):
        tiny("method=kd", "teacher.min_accuracy=1.0")


def test_a_published_teacher_is_mapped_and_teaches_the_same(whole, teacher_record, tiny, tmp_path, capsys):
    state = {key: value for key, value in load_file(teacher_record.weights).items() if "num_batches" not in key}
    content = {"opt": Namespace(model="resnet14"), "model": state, "best_acc": np.float64(70)}
    path = _saved(tmp_path / "resnet14_last.pth", content)
    run = tiny(f"teacher.checkpoint={path}")
    assert run.finished["test"] == whole[1].finished["test"]
    assert f"teacher.checkpoint={path}: read model, num_batches_tracked added" in capsys.readouterr().out
    again = tiny(f"teacher.checkpoint={path.rename(tmp_path / 'other_name.pth')}")
    assert again.id == run.id  # by its content


def test_teacher_input_is_normalised_as_it_was_trained(teacher_record, tiny, tmp_path):
    path = save(tmp_path / "t.safetensors", teacher_record)
    words = [f"teacher.checkpoint={path}", "dataset.normalize=false", "recipe.epochs=1"]
    right = tiny(*words, "teacher.mean=[0.5]", "teacher.std=[0.33]").result
    assert right["teacher"]["test_accuracy"] == teacher_record.finished["test"]["accuracy"]
    assert (right["sizes"]["mean"], right["sizes"]["std"]) == ([0.0], [1.0])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["dataset.normalize=false"], ["teacher.mean=null", "[0.0] and [1.0]"]),
        (["dataset.normalize=false", "teacher.mean=[0.5]"], ["teacher.std=null", "teacher.mean and teacher.std"]),
        (["teacher.mean=[0.5,0.5]"], ["teacher.mean=[0.5, 0.5]", "1 or dataset.channels=1"]),
        (["teacher.mean=[]"], ["teacher.mean=[]", "1 or dataset.channels=1"]),
        (["teacher.mean=[a]"], ["teacher.mean=['a']", "numbers"]),
        (["teacher.std=[0.0]"], ["teacher.std=[0.0]", "> 0"]),
    ],
    ids=str,
)
def test_mean_and_std_of_a_teacher_file_are_checked_before_training(overrides, parts, teacher_record, words):
    checkpoint = f"teacher.checkpoint={teacher_record.weights}"
    with pytest.raises(UserError) as caught:
        spec_of(words(checkpoint, *overrides))
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)
    without_teacher = [override for override in overrides if override.startswith("dataset")]
    spec_of(words(checkpoint, "method=ce", *without_teacher))  # needs no teacher


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["teacher.classes=[0,1,2]"], "one output for each of the 4 classes of the data, not 3"),
        (["teacher.classes=[]"], "one output for each of the 4 classes"),
        (["teacher.classes=[0,1,2,2]"], "teacher.classes=[0, 1, 2, 2] is not allowed: must be different integers >= 0"),
        (["teacher.classes=[0,1,2,-1]"], "must be different integers >= 0"),
        (["teacher.classes=[0,1,2,true]"], "must be different integers >= 0"),
        (["teacher.classes=[0,1,2,[3]]"], "must be different integers >= 0"),
        (["teacher.classes=[0,1,2,4]"], "has 4 classes, 0 to 3"),
        (["teacher.classes=[0,1,2,3]", "teacher.checkpoint=null"], "not allowed without teacher.checkpoint"),
        (["teacher.classes=3"], "must be list or null"),
    ],
    ids=str,
)
def test_the_classes_of_a_teacher_file_are_checked_before_training(overrides, part, teacher_record, words):
    with pytest.raises(UserError) as caught:
        spec_of(words(f"teacher.checkpoint={teacher_record.weights}", *overrides))
    assert "teacher.classes=" in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.safetensors", "t.pth"])
def test_a_teacher_file_of_more_classes_teaches_those_of_the_data(teacher_record, tiny, tmp_path, name, capsys):
    state = load_file(teacher_record.weights)
    order = [5, 2, 0, 6]  # the outputs of the larger file that are the classes of the data

    def placed(rows):
        larger = torch.zeros(7, *rows.shape[1:])
        larger[order] = rows
        return larger

    path = save(tmp_path / name, teacher_record, **{key: placed(state[key]) for key in ("fc.weight", "fc.bias")})
    run = tiny(f"teacher.checkpoint={path}", "teacher.classes=[5,2,0,6]", "recipe.epochs=1")
    assert run.finished["teacher"]["test_accuracy"] == teacher_record.finished["test"]["accuracy"]
    same_file = tiny(f"teacher.checkpoint={teacher_record.weights}", "recipe.epochs=1")
    assert run.finished["test"] == same_file.finished["test"]
    assert run.finished["teacher"]["id"] != same_file.finished["teacher"]["id"]
    assert "only the outputs teacher.classes kept" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"has 7 classes, but the data set has 4; teacher\.classes="):
        tiny(f"teacher.checkpoint={path}", "recipe.epochs=1")
    with pytest.raises(UserError, match=r"teacher\.classes=\[5, 2, 0, 7\] is not allowed: .* has 7 classes, 0 to 6"):
        tiny(f"teacher.checkpoint={path}", "teacher.classes=[5,2,0,7]", "recipe.epochs=1")


def test_a_teacher_whose_hidden_layer_is_called_like_a_classifier(words, tmp_path):
    weights = {"fc.weight": torch.zeros(64, 3), "out.weight": torch.zeros(4, 64)}
    save_file(weights, tmp_path / "t.safetensors")
    own = ["teacher=custom", "teacher.name=tests.helpers.networks.Plain", "teacher.classifier=out"]
    assert spec_of(words(f"teacher.checkpoint={tmp_path}/t.safetensors", *own)).config["teacher"]["classes"] is None


def test_one_mean_and_std_stand_for_all_channels(tmp_path):
    net = build("resnet8", num_classes=4, in_chans=3, image_size=8, mean=[0.0] * 3, std=[1.0] * 3)
    path = tmp_path / "t.safetensors"
    save_file(net.export_state(), path)
    overrides = ["dataset.channels=3", f"teacher.checkpoint={path}", "teacher=resnet8", "dataset.normalize=false"]
    spec = spec_of([*TINY, *overrides, "teacher.mean=[0.0]", "teacher.std=[1.0]"])
    assert not network_from_file(spec.config["teacher"], spec.sizes)[0].normalises
    spec = spec_of([*TINY, *overrides, "teacher.mean=[0.5]", "teacher.std=[0.1,0.2,0.4]"])
    network, _ = network_from_file(spec.config["teacher"], spec.sizes)
    expected = torch.tensor([5.0, 2.5, 1.25])
    torch.testing.assert_close(network.normalised(torch.ones(1, 3, 1, 1)).flatten(), expected)


def test_a_teacher_that_is_too_bad_stops_the_run(tiny):
    with pytest.raises(UserError, match=r"below teacher\.min_accuracy=1"):
        tiny("teacher.min_accuracy=1.0", "teacher.recipe.epochs=1", "teacher.recipe.lr=1e-6")


def test_files_that_are_no_teacher(teacher_record, tiny, tmp_path):
    def refused(path, *more):
        with pytest.raises(UserError) as caught:
            tiny(f"teacher.checkpoint={path}", *more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be read" in refused(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "neither safetensors nor a plain state dict" in refused(tmp_path / "text.pth")
    torch.save(teacher_record.state.join, tmp_path / "code.pth")
    assert "could run code" in refused(tmp_path / "code.pth")
    assert "holds no state dict" in refused(_saved(tmp_path / "list.pth", [1, 2]))
    good = save(tmp_path / "t.safetensors", teacher_record)
    assert "has 4 classes, but the data set has 6" in refused(good, "dataset.num_classes=6")
    assert "belongs to another network" in refused(good, "teacher=resnet20")
    assert "belongs to another network" in refused(good, "teacher=wrn_16_1")
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

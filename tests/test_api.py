"""The Python API: what `import kdbench` offers, and the example that uses it."""

import copy
import os
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import kdbench
from kdbench.models.features import Features
from kdbench.models.trained import trained_network
from kdbench.specs.resolve import spec_of
from tests.helpers.networks import Plain
from tests.helpers.tiny import TINY

ROOT = Path(__file__).parents[1]
SIZES = {"in_chans": 1, "image_size": 8}
NAMED = {**SIZES, "stages": ["stage1", "stage2"], "classifier": "fc"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def spec(outputs):
    return kdbench.make(*TINY, "method=kd", "method.temperature=2", "recipe.epochs=1", f"outputs={outputs}")


@pytest.fixture(scope="module")
def record(spec):
    return kdbench.conduct(spec)


def refused(function, *args, **kwargs):
    with pytest.raises(kdbench.UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_import_is_light_and_every_name_is_there():
    code = "import sys, kdbench; print(*[m for m in ('torch', 'pandas', 'hydra') if m in sys.modules])"
    code += "; kdbench.make('logger=none'); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False"]
    assert all(getattr(kdbench, name) for name in kdbench.__all__)
    assert set(kdbench.__all__) <= set(dir(kdbench))
    assert not hasattr(kdbench, "absent")


def test_no_name_hides_a_module_of_the_package():
    modules = {module.name for module in pkgutil.iter_modules(kdbench.__path__)}
    assert modules.isdisjoint(kdbench.__all__)


def test_make_takes_the_words_of_the_command_line(words):
    assert (
        kdbench.make(*words("method=kd", "method.temperature=2")).id
        == spec_of(words("method=kd", "method.temperature=2")).id
    )
    assert "method.temprature" in refused(kdbench.make, "method.temprature=2")


@pytest.mark.parametrize("several", ["seed=0,1", "method=choice(ce,kd)", "seed=range(3)"])
def test_make_refuses_words_that_mean_several_runs(several):
    message = refused(kdbench.make, "logger=none", several)
    assert several in message
    assert "kdbench.grid" in message


def test_grid_makes_every_different_run_once(words):
    specs = kdbench.grid(*words("method=ce,kd", "teacher=resnet14,resnet20", "seed=0,1"))
    assert len({spec.id for spec in specs}) == len(specs) == 2 + 4
    assert specs[0].id == spec_of(words("method=ce", "seed=0")).id
    message = refused(kdbench.grid, *words("method=ce,kd", "method.temperature=2"))
    assert "job 1/2" in message
    assert "method.temperature" in message


def test_run_is_make_and_conduct(words):
    record = kdbench.run(*words("method=ce", "recipe.epochs=1"))
    assert record.finished["test"]["accuracy"] >= 0
    assert record.id == spec_of(words("method=ce", "recipe.epochs=1")).id


def test_runs_has_a_row_for_every_run(record, spec, outputs):
    unfinished = outputs / "runs" / "kd-a-b-c-s7-0123456789ab"
    unfinished.mkdir(exist_ok=True)
    frame = kdbench.runs(outputs).set_index("id")
    unfinished.rmdir()
    assert len(frame) == 3
    mine, teacher = frame.loc[spec.id], frame.loc[spec.dependencies["teacher"].id]
    expected = {
        "name": spec.name, "state": "finished", "role": "distill", "method": "kd", "plus": "", "teacher": "resnet14",
        "student": "resnet8", "dataset": "fake", "noise": "none", "imbalance": "none", "seed": 0, "epochs": 1,
        "test_accuracy": record.finished["test"]["accuracy"], "val_accuracy": record.finished["val"]["accuracy"],
        "teacher_test_accuracy": spec.dependencies["teacher"].record.finished["test"]["accuracy"],
        "directory": spec.directory,
    }  # fmt: skip
    assert {key: mine[key] for key in expected} == expected
    assert teacher["role"] == "teacher"
    assert pd.isna(teacher["teacher"])
    assert frame.loc["0123456789ab", "state"] == "new"
    assert pd.isna(frame.loc["0123456789ab", "test_accuracy"])


def test_runs_adds_the_keys_of_the_configuration_by_choice(record, spec, outputs, tmp_path):
    plain, full = kdbench.runs(outputs), kdbench.runs(str(outputs), config=True).set_index("id")
    assert not [column for column in plain.columns if column.startswith("config.")]
    assert full.loc[spec.id, "config.method.temperature"] == 2
    assert full.loc[spec.id, "config.recipe.lr"] == record.config["recipe"]["lr"]
    empty = kdbench.runs(tmp_path)
    assert (len(empty), list(empty.columns)) == (0, list(plain.columns))


def test_load_student_finds_a_run_by_all_that_names_it(record, spec, outputs):
    expected = trained_network(record).export_state()
    ways = [(record,), (spec,), (spec.directory,), (str(spec.directory),), (spec.id, outputs), (spec.id[:6], outputs)]
    for way in [*ways, (spec.name, str(outputs))]:
        loaded = kdbench.load_student(*way).export_state()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_loaded_student_predicts(record):
    student = kdbench.load_student(record)
    assert not any(module.training for module in student.modules())
    with torch.no_grad():
        features = student(torch.rand(5, 1, 8, 8))
    assert isinstance(features, Features)
    assert features.logits.shape == (5, 4)
    assert features.logits.device.type == "cpu"


def test_load_student_refuses_what_is_not_one_finished_run(record, spec, outputs, words, tmp_path):
    assert "is none of them" in refused(kdbench.load_student, "absent", outputs)
    assert "is the beginning of 2" in refused(kdbench.load_student, "", outputs)
    assert "only a finished run" in refused(kdbench.load_student, kdbench.make(*words("method=ce")))
    broken = tmp_path / "runs" / spec.directory.name
    broken.mkdir(parents=True)
    (broken / "result.json").write_bytes((spec.directory / "result.json").read_bytes())
    (broken / "student.safetensors").write_bytes(record.weights.read_bytes()[:-1] + b"x")
    assert "is not what its result.json describes" in refused(kdbench.load_student, spec.id, tmp_path)


def test_network_wraps_a_module_and_makes_one_by_name():
    net = Plain(num_classes=4, in_chans=1)
    wrapped = kdbench.network(net, **NAMED, mean=[0.5], std=[0.25]).eval()
    assert wrapped.net is net
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(wrapped(images).logits, net((images - 0.5) / 0.25))
    assert torch.allclose(kdbench.network(net, **NAMED).eval()(images).logits, net(images))
    assert wrapped.shapes.stages == [(6, 8, 8), (12, 4, 4)]
    assert kdbench.network("resnet8", num_classes=4, **SIZES).shapes.num_classes == 4


@pytest.mark.parametrize(
    ("net", "arguments", "expected"),
    [
        (nn.Linear(3, 4), {}, "classifier"),
        (Plain(num_classes=4, in_chans=1), {**NAMED, "classifier": "absent"}, "no module 'absent'"),
        (Plain(num_classes=4, in_chans=1), {**NAMED, "in_chans": 3}, "does not work with 3x8x8 images"),
        (Plain(num_classes=4, in_chans=1), {**NAMED, "num_classes": 4}, "takes no num_classes"),
        (Plain(num_classes=4, in_chans=1), {**NAMED, "mean": [0.5] * 3}, "mean"),
        ("resnet8", SIZES, "needs num_classes"),
        ("resnet9", {**SIZES, "num_classes": 4}, "unknown cifar network resnet9"),
        ("resnet8", {**SIZES, "num_classes": 4, "classifier": "fc"}, "neither stages nor classifier"),
    ],
)
def test_network_refuses_in_one_line(net, arguments, expected):
    assert expected in refused(kdbench.network, net, **arguments)


def pair():
    torch.manual_seed(0)
    return [kdbench.network(Plain(num_classes=4, in_chans=1), **NAMED) for _ in range(2)]


def test_a_method_trains_in_a_plain_loop():
    student, teacher = pair()
    frozen = copy.deepcopy(teacher.export_state())
    method = kdbench.method("method=fitnet", "method.stages=[1]", "plus=[kd]", student=student, teacher=teacher)
    images, labels = torch.rand(16, 1, 8, 8), torch.randint(4, (16,))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    sums = []
    for _ in range(20):
        losses = method.batch_losses(kdbench.batch(images, labels))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sums.append(total.item())
    assert set(losses) == {"ce", "hint", "plus_kd"}
    assert sums[-1] < 0.9 * sums[0]
    assert method.student is student
    assert all(torch.equal(value, frozen[key]) for key, value in teacher.export_state().items())


def test_a_method_takes_its_options_and_knows_the_epoch():
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])

    def losses(*words):
        student, teacher = pair()
        return kdbench.method(*words, student=student, teacher=teacher).batch_losses(kdbench.batch(images, labels))

    one, other = losses("method=kd", "method.temperature=1"), losses("method=kd", "method.temperature=8")
    assert one["ce"] == other["ce"]
    assert one["kd"] != other["kd"]
    student, teacher = pair()
    words = "method=fitnet", "method.stages=[1]", "method.training=staged"
    staged = kdbench.method(*words, student=student, teacher=teacher, epochs=3)
    assert staged.total_epochs > 3
    assert staged.enter_epoch(staged.total_epochs - 1)
    alone = kdbench.method("method=ls", student=student)
    assert alone.batch_losses(kdbench.batch(images, labels))["ce"] > 0


def test_a_batch_numbers_its_images_unless_it_is_given_their_numbers():
    images, labels = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    assert kdbench.batch(images, labels).index.tolist() == [0, 1, 2]
    assert kdbench.batch(images, labels, torch.tensor([7, 8, 9])).index.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("words", "teacher", "expected"),
    [
        (["method=kd"], False, "method=kd needs teacher"),
        (["method=ce"], True, "method=ce takes no teacher"),
        (["method=lwkd"], True, "method=lwkd learns from runs of its own"),
        (["method=dml"], False, "method=dml makes several updates"),
        (["method=kd", "student=resnet8"], True, "student=resnet8 is not allowed here"),
        (["method=kd", "recipe.lr=1"], True, "recipe.lr=1 is not allowed here"),
        (["method=kd", "method.temperature=-1"], True, "method.temperature=-1"),
        (["method=kdd"], True, "method=kdd is not known"),
    ],
)
def test_method_refuses_in_one_line(words, teacher, expected):
    student, other = pair()
    assert expected in refused(kdbench.method, *words, student=student, teacher=other if teacher else None)


def test_the_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python_api.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "python_api.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "the student reads" in printed
    accuracy = float(printed.strip().splitlines()[-1].split()[-1])
    assert accuracy > 0.5  # of ten classes
    assert len(kdbench.runs(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == ["answers", "runs"]

"""`kdbench new`: what it writes is clean, composes, trains and passes its tests; a refusal changes nothing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.config import plugins
from kdbench.config.groups import header, options
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct

LINT = "E,F,W,I,B,UP,SIM,C4,RUF,PT,D1,D2,D3,D4"
IGNORED = "D105,D107,D203,D205,D212,D213,D401,D413"
SMOKE = ["recipe=quick", "debug=smoke", "teacher=resnet14", "trainer=cpu", "trainer.progress=none"]
RUNS = {
    "method": ["method=mine", "student=resnet8", "dataset=digits"],
    "network": ["method=kd", "student=mine", "dataset=digits"],
    "dataset": ["method=kd", "student=resnet8", "dataset=mine"],
}
GROUPS = {"method": "method", "network": "student", "dataset": "dataset"}


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """An empty current folder, and plugins that end with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv(plugins.VARIABLE, "")
    yield
    for kind in RUNS:
        sys.modules.pop(f"mine_{kind}", None)


def written(folder):
    return {file.relative_to(folder): file.read_text() for file in folder.rglob("*") if file.is_file()}


def run(command, folder, **variables):
    environment = {**os.environ, plugins.VARIABLE: "", "PYTHONPATH": "", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(capsys, *words):
    before = written(Path())
    assert cli.main(["new", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert written(Path()) == before
    return line


@pytest.mark.parametrize("kind", RUNS)
def test_what_it_writes_is_clean_composes_trains_and_passes_its_own_test(kind, tmp_path, capsys, monkeypatch):
    assert cli.main(["new", kind, "mine"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "mine"
    for file in written(folder):
        assert f"wrote mine/{file}" in printed
    assert {f"mine_{kind}.py", "README.md", "conftest.py"} <= {str(file) for file in written(folder)}
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--select", LINT, "--ignore", IGNORED, "--per-file-ignores", "tests/**:D"]
    run([*ruff, "check", "--isolated", "--no-cache", "--line-length", "120", *rules, "."], folder)
    run([*ruff, "format", "--isolated", "--no-cache", "--line-length", "120", "--check", "."], folder)

    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    assert "mine" in options(GROUPS[kind])
    labels = header(f"{GROUPS[kind]}/mine")
    assert all(labels[label] for label in ("what", "paper", "year", "needs"))
    record = conduct(spec_of([*SMOKE, *RUNS[kind], f"outputs={tmp_path}/outputs"]))
    assert 0 <= record.result["test"]["accuracy"] <= 1

    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], folder)
    assert "passed" in output
    assert "failed" not in output


@pytest.mark.parametrize("kind", RUNS)
def test_the_commands_that_it_prints_are_possible(kind, tmp_path, capsys):
    cli.main(["new", kind, "mine", "--in", "a plugin"])
    first, second = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    assert "KDBENCH_PLUGINS='a plugin' kdbench-train " in second
    assert "'a plugin" in first
    overrides = shlex.split(second.partition("kdbench-train ")[2])
    plugins.add("a plugin")
    assert spec_of(overrides).config[GROUPS[kind]]["name"].endswith("mine")
    readme = Path("a plugin/README.md").read_text()
    assert f"KDBENCH_PLUGINS=. kdbench-train {' '.join(overrides)}" in readme


def test_a_second_thing_is_added_to_a_plugin_and_nothing_of_it_changes(tmp_path):
    assert cli.main(["new", "method", "mine", "--in", "plugin"]) == 0
    before = written(tmp_path / "plugin")
    assert cli.main(["new", "dataset", "mine", "--in", "plugin"]) == 0
    after = written(tmp_path / "plugin")
    assert before.items() <= after.items()
    assert {str(file) for file in after.keys() - before.keys()} == {
        "mine_dataset.py", "conf/dataset/mine.yaml", "tests/test_mine_dataset.py",
    }  # fmt: skip
    assert spec_of(["method=mine", "dataset=mine"]).name.startswith("mine-resnet20-resnet8-mine")


def test_in_a_package_the_module_is_imported_as_a_part_of_it(tmp_path, capsys):
    package = tmp_path / "project/my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert cli.main(["new", "network", "mine", "--in", "project/my_package"]) == 0
    assert "name: my_package.mine_network.mine" in (package / "conf/student/mine.yaml").read_text()
    assert f"PYTHONPATH={tmp_path}/project kdbench-train" in capsys.readouterr().out
    assert "PYTHONPATH=.. kdbench-train" in (package / "README.md").read_text()
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], package)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["method", "rkdd"], None),
        (["method", "rkd"], ["method=rkd is taken: choose another name"]),
        (["network", "resnet8"], ["student=resnet8 is taken: choose another name"]),
        (["network", "self"], ["student=self is taken"]),
        (["dataset", "custom"], ["dataset=custom is taken"]),
        (["method", "Mine"], ["Mine is not possible as a name"]),
        (["method", "my-method"], ["my-method is not possible as a name"]),
        (["method", "2nd"], ["2nd is not possible as a name"]),
        (["method", "_mine"], ["_mine is not possible as a name"]),
        (["method", "class"], ["class is not possible as a name"]),
        (["method", "null"], ["null is not possible as a name"]),
        (["method", "a" * 41], ["at most 40"]),
    ],
    ids=lambda value: "-".join(value) if value and len(value) == 2 else "",
)
def test_a_name_that_is_not_possible_is_refused_in_a_line(words, parts, capsys):
    if parts is None:
        assert cli.main(["new", *words]) == 0
        return
    line = refused(capsys, *words)
    for part in parts:
        assert part in line


def test_a_name_that_a_plugin_has_is_taken(capsys):
    cli.main(["new", "method", "mine", "--in", "plugin"])
    assert "method=mine is taken" in refused(capsys, "method", "mine", "--in", "plugin")
    plugins.add("plugin")
    assert "method=mine is taken" in refused(capsys, "method", "mine", "--in", "other")


@pytest.mark.parametrize("file", ["mine_method.py", "conf/method/mine.yaml", "tests/test_mine_method.py"])
def test_nothing_is_overwritten(file, capsys):
    there = Path("plugin") / file
    there.parent.mkdir(parents=True)
    there.write_text("name: other\n")
    line = refused(capsys, "method", "mine", "--in", "plugin")
    assert str(there) in line or "is taken" in line


def test_folders_that_are_not_possible_are_refused_in_a_line(capsys, monkeypatch):
    Path("file").write_text("")
    assert "file is not a folder" in refused(capsys, "method", "mine", "--in", "file")
    assert "file is not a folder" in refused(capsys, "method", "mine", "--in", "file/plugin")
    root = Path(cli.__file__).parents[1]
    assert "is kdbench itself" in refused(capsys, "method", "mine", "--in", str(root))
    Path("tree/method").mkdir(parents=True)
    Path("tree/method/other.yaml").write_text("name: other\n")
    assert "a tree of options itself" in refused(capsys, "method", "mine", "--in", "tree")
    Path("mine_dataset.py").write_text("")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert "there is a module mine_dataset already" in refused(capsys, "dataset", "mine", "--in", "plugin")


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["new", "metod", "mine"])
    assert end.value.code == 2
    assert "method" in capsys.readouterr().err

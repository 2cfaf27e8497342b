"""`kdbench`: what it lists, and that listing needs no torch."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
import torch

from kdbench import __version__, cli
from kdbench.config.groups import options
from kdbench.config.networks import NETWORKS
from kdbench.speed.steps import most_allocated


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["kd", "Hinton", "2015", "a teacher", *options("method")]),
        ("teachers", ["resnet32x4", "He et al.", "2016", "timm", "self"]),
        ("students", [*NETWORKS]),
        ("datasets", options("dataset")),
        ("recipes", ["crd240", "quick"]),
        ("experiments", ["demo"]),
        ("loggers", ["wandb", "csv"]),
    ],
)
def test_ls(what, words, capsys):
    assert cli.main(["ls", what]) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_ls_of_something_else_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["ls", "metods"])
    assert end.value.code == 2
    assert "methods" in capsys.readouterr().err


def test_ls_imports_no_torch():
    code = "import sys; from kdbench import cli; cli.main(['ls', 'methods']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("method", ["ce", "kd"])
def test_bench(method, tmp_path, capsys):
    words = [f"method={method}", "teacher=resnet14", "student=resnet8", "dataset=fake", "dataset.image_size=8"]
    words += ["dataset.crop_padding=1", "recipe.batch_size=16", "logger=none"]
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--rounds", "2", "--steps", "3", "--json", str(path), *words]) == 0
    figures = json.loads(path.read_text())
    assert len(figures["epoch_seconds"]) == len(figures["bare_seconds"]) == 2
    assert 0 < figures["ratio"] < 3
    assert figures["epoch_images_per_second"] > 0 < figures["peak_memory_bytes"]
    assert "real epoch" in capsys.readouterr().out


def test_bench_of_methods_against_each_other(tmp_path, capsys):
    words = ["teacher=resnet14", "student=resnet8", "dataset=fake", "dataset.image_size=8", "dataset.crop_padding=1"]
    words += ["recipe.batch_size=16", "logger=none", "--methods", "kd,fsp,bss,dml"]
    path = tmp_path / "figures.json"
    assert cli.main(["bench", "--rounds", "3", "--steps", "2", "--json", str(path), *words]) == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["kd", "fsp (flow)", "fsp", "bss", "dml"]
    assert (rows["kd"]["time_ratio"], rows["kd"]["memory_ratio"], rows["kd"]["extra_parameters"]) == (1, 1, 0)
    assert rows["bss"]["time_ratio"] > 1.5  # the attack is under way
    assert rows["dml"]["extra_parameters"] > 70_000
    assert "fsp (flow)" in capsys.readouterr().out


def test_most_allocated_is_what_was_alive_at_one_time():
    def work():
        first = torch.empty(1000, dtype=torch.float32)
        second = torch.empty(500, dtype=torch.float32)
        del first, second
        torch.empty(1200, dtype=torch.float32)

    assert most_allocated(work, torch.device("cpu")) == 6000


def test_bench_of_a_bad_override_is_one_line(capsys):
    assert cli.main(["bench", "dataset=fak"]) == 2
    assert "nearest: fake" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"kdbench {__version__}\n"
    assert importlib.metadata.version("kdbench") == __version__

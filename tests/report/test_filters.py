import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.errors import UserError
from kdbench.records.record import all_records, default_outputs
from kdbench.report.filters import Filter, select


def names(tmp_path, *filters):
    return [record.name for record in select(all_records(tmp_path), [Filter.parse(text) for text in filters])]


def test_filters_select_by_configuration_state_and_role(tmp_path, record):
    record("method=ce", seed=0)
    record("method=ce", seed=1, role="teacher")
    record("method=kd", seed=0, state="failed")
    assert names(tmp_path, "method=ce") == ["ce-resnet8-digits-s0", "ce-resnet8-digits-s1"]
    assert names(tmp_path, "method=ce", "seed=1") == ["ce-resnet8-digits-s1"]
    assert names(tmp_path, "state=failed") == ["kd-resnet20-resnet8-digits-s0"]
    assert names(tmp_path, "role=teacher") == ["ce-resnet8-digits-s1"]
    assert names(tmp_path, "student=resnet8", "dataset=digits,mnist5k", "recipe.lr=0.10") == names(tmp_path)


def test_a_method_matches_with_and_without_added_losses(tmp_path, record):
    record("method=at")
    record("method=at", "plus=[kd]")
    assert len(names(tmp_path, "method=at")) == 2
    assert names(tmp_path, "method=at+kd") == ["at+kd-resnet20-resnet8-digits-s0"]
    assert names(tmp_path, "plus=none") == ["at-resnet20-resnet8-digits-s0"]


def test_noise_matches_by_kind_or_by_kind_and_rate(tmp_path, record):
    record("method=ce", "noise=symmetric", "noise.rate=0.2")
    record("method=ce", "noise=symmetric", "noise.rate=0.4")
    assert len(names(tmp_path, "noise=symmetric")) == 2
    assert names(tmp_path, "noise.rate=0.40") == names(tmp_path, "noise=symmetric0.4")
    assert names(tmp_path, "imbalance=longtail") == []


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, record):
    record("method=ce")
    with pytest.raises(UserError, match=r"recipe\.epoch=3: no run has recipe\.epoch; nearest: recipe\.epochs"):
        names(tmp_path, "recipe.epoch=3")
    with pytest.raises(UserError, match="kd is not allowed: filters are key=value"):
        names(tmp_path, "kd")


def test_runs_are_listed_newest_first_with_state_and_reason(tmp_path, record, capsys):
    record("method=ce", seed=0, accuracy=0.9123)
    record("method=ce", seed=1, role="teacher")
    record("method=kd", seed=2, state="failed")
    assert cli.main(["runs", "--outputs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "digits" in line]
    assert ["-s2" in lines[0], "-s1" in lines[1], "-s0" in lines[2]] == [True] * 3
    assert "failed" in lines[0]
    assert "disk full" in lines[0]
    assert "teacher" in lines[1]
    assert "91.23" in lines[2]
    assert "3 runs in" in printed
    assert ": 1 failed, 2 finished" in printed


def test_an_empty_list_is_not_an_error(tmp_path, capsys):
    assert cli.main(["runs", "--outputs", str(tmp_path)]) == 0
    assert "0 runs" in capsys.readouterr().out


def test_the_default_outputs_are_those_of_training(monkeypatch):
    monkeypatch.delenv("KDBENCH_OUTPUTS", raising=False)
    assert default_outputs() == Path("outputs")
    monkeypatch.setenv("KDBENCH_OUTPUTS", "/elsewhere")
    assert default_outputs() == Path("/elsewhere")


def test_the_list_imports_neither_torch_nor_pandas_and_a_report_imports_no_torch(tmp_path, record):
    record("method=ce")
    code = (
        "import sys; from kdbench import cli; cli.main(['runs', '--outputs', sys.argv[1]]);"
        "heavy = {'torch', 'pandas', 'matplotlib'} & set(sys.modules);"
        "cli.main(['report', '--outputs', sys.argv[1], '--html', sys.argv[1] + '/r.html']);"
        "sys.exit(bool(heavy) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

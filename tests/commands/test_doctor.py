"""The doctor names what is wrong, and only what is wrong makes it fail."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdbench import cli
from kdbench.commands import doctor
from kdbench.loggers import wandb as wandb_mirror


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Folders of our own, and no key."""
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(wandb_mirror, "_has_key", lambda: False)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("WANDB_MODE", raising=False)


def look(name: str) -> doctor.Check:
    (check,) = [check for check in doctor.report() if check.name == name]
    return check


def test_this_machine_is_fit(tmp_path, capsys):
    assert cli.main(["doctor"]) == 0
    table = capsys.readouterr().out
    for name, _, detail in doctor.report():
        assert name in table
        assert detail[:20] in table
    assert not list(tmp_path.iterdir()), "a look leaves no trace"


def test_versions():
    assert look("torch").detail == torch.__version__.split("+")[0]
    assert look("python").status == "ok"


def test_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ["no-such-package"])
    assert look("no-such-package").status == "fail"


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malicious_lightning(monkeypatch, version):
    monkeypatch.setattr(doctor, "version", lambda package: version if package == "pytorch-lightning" else "1")
    assert look("lightning").status == "fail"
    assert look("lightning").detail.startswith(f"pytorch-lightning {version} is a malicious upload")
    assert cli.main(["doctor"]) == 1


def test_mixed_lightning(tmp_path, monkeypatch):
    assert not [check for check in doctor.report() if check.name == "lightning"]
    (tmp_path / "lightning.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert look("lightning").status == "warn"


def test_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert look("device").detail.startswith(f"CPU, {torch.get_num_threads()} threads")


def test_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert look("device 1") == ("device 1", "ok", "H100, 80 GiB")
    assert look("bf16").status == "warn"


def test_data_root(tmp_path):
    assert look("data root").status == "warn"
    assert "does not exist" in look("data root").detail
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    assert look("data root") == ("data root", "ok", f"{tmp_path / 'data'}: cifar100")


def test_embedded_data(monkeypatch):
    assert look("digits").status == look("mnist5k").status == "ok"
    monkeypatch.setattr("kdbench.data.embedded.FILES", {"digits": ("sklearn", "not/there.csv.gz", 8, 16)})
    assert look("digits").status == "fail"


def test_outputs_are_counted(tmp_path):
    for name in ("ce-a", "kd-b"):
        (tmp_path / "outputs" / "runs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / "runs" / name / "status.json").write_text('{"state": "failed"}')
    (tmp_path / "outputs" / "runs" / "kd-new").mkdir()
    assert look("outputs") == ("outputs", "ok", f"{tmp_path / 'outputs'}: 2 runs")


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(tmp_path / "file" / "outputs"))
    assert look("outputs").status == "fail"
    assert str(tmp_path / "file" / "outputs") in look("outputs").detail
    assert cli.main(["doctor"]) == 1


def test_little_disk(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4 * 2**30))
    assert look("disk").status == "warn"
    assert look("disk").detail.startswith("4.0 GiB free")


def test_wandb(monkeypatch):
    assert look("W&B") == ("W&B", "ok", "offline (no key: `wandb login` stores one)")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert look("W&B") == ("W&B", "ok", "disabled (WANDB_MODE)")
    monkeypatch.delenv("WANDB_MODE")

    def invalid() -> bool:
        raise ValueError("WANDB_API_KEY invalid")

    monkeypatch.setattr(wandb_mirror, "_has_key", invalid)
    assert look("W&B") == ("W&B", "warn", "off: WANDB_API_KEY invalid")


def test_a_look_that_breaks_is_a_failure(monkeypatch):
    def broken() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert look("device") == ("device", "fail", "RuntimeError: driver too old")
    assert look("disk").status in ("ok", "warn")


def test_for_real(tmp_path):
    """In a process of its own, with W&B's own look-up, a narrow pipe and an empty home."""
    command = [sys.executable, "-c", "from kdbench import cli; raise SystemExit(cli.main(['doctor']))"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(doctor.__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "offline (no key" in done.stdout
    assert not list(tmp_path.iterdir())

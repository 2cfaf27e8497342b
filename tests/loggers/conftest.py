"""A fake W&B run; the outputs of a real sweep; a machine without a W&B key, and one with a key for a local server."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.loggers import wandb as wandb_mirror
from tests.helpers.tiny import TINY
from tests.helpers.wandb_server import KEY

SWEEP = [
    *(override for override in TINY if not override.startswith(("logger", "recipe.epochs"))),
    "recipe.epochs=2", "noise=symmetric", "imbalance=longtail", "imbalance.factor=2", "logger=wandb",
    "logger.mode=offline",
]  # fmt: skip


@pytest.fixture
def fake_wandb(monkeypatch) -> SimpleNamespace:
    """A `wandb.init` that records its calls; the call named `broken` (`init`, `log`, `finish`) raises, too."""
    import wandb

    fake = SimpleNamespace(init=[], log=[], finish=[], broken="")

    def call(name: str, value: Any) -> None:
        getattr(fake, name).append(value)
        if name == fake.broken:
            raise RuntimeError(f"{name}\nis broken")

    def init(**arguments: Any) -> SimpleNamespace:
        call("init", arguments)
        return SimpleNamespace(
            url="https://example.org",
            settings=SimpleNamespace(sync_dir="there"),
            summary={},
            define_metric=lambda *_, **__: None,
            log=lambda row, step, commit: call("log", row),
            finish=lambda exit_code: call("finish", exit_code),
        )

    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_mirror, "_has_key", lambda: True)
    return fake


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The outputs of a real sweep, recorded offline; not to be changed."""
    outputs = tmp_path_factory.mktemp("outputs")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"KDBENCH_OUTPUTS": str(outputs), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "kdbench.train", "-m", "method=ce,kd", "seed=0,1", *SWEEP]
    subprocess.run(command, env=environment, check=True, cwd=outputs)
    return outputs


@pytest.fixture
def outputs(swept, tmp_path, monkeypatch):
    """A copy of the sweep's outputs, on a machine where W&B has no key and no mode."""
    outputs = tmp_path / "outputs"
    subprocess.run(["cp", "-r", swept, outputs], check=True)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_MODE"):  # restored even if the test sets them
        monkeypatch.setenv(name, "false")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(outputs))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb_mirror._has_key.cache_clear()
    yield outputs
    wandb_mirror._has_key.cache_clear()


@pytest.fixture
def account(server, monkeypatch, outputs):
    """The local server, for which the same machine has a key."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    wandb.teardown()  # wandb reads the environment only once
    yield server
    wandb.teardown()

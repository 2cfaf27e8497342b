"""Mirrors get the same numbers as the record, can be read back, and never fail, hang or clutter a run."""

import inspect
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kdbench import loggers
from kdbench.config import CONF, rules
from kdbench.errors import UserError
from tests.helpers.wandb_server import KEY, offline, stored

NOBODY = "http://127.0.0.1:9"  # refuses connections
OPTIONS = {"kind": "wandb", "mode": "auto", "project": "kdbench", "entity": None, "group": None, "tags": ["mine"]}


def info(directory: Path, id: str = "0123456789ab", **news: Any) -> loggers.RunInfo:
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "id": id, "name": f"kd-{id}", "directory": directory, "group": "kd-digits", "job_type": "distill",
        "tags": ["kd", "digits", "t" * 80], "resumed": False,
        "config": {"method": {"name": "kd", "temperature": 4.0}, "plus": {}, "seed": 0, "a.b": {"c.d": 1}},
    }  # fmt: skip
    return loggers.RunInfo(**(values | news))


# ------------------------------------------------------------------------------- in a process of its own

PREAMBLE = f"""
import logging, sys
from pathlib import Path
from typing import Any
from kdbench import loggers
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stdout)
outputs = Path(sys.argv[1])
OPTIONS = {OPTIONS!r}
{inspect.getsource(info)}

def train(mirror, epochs=range(2), exit_code=0):
    for epoch in epochs:
        mirror.log({{"train/loss": 1.0 / (epoch + 1), "val/accuracy": 0.5}}, epoch)
    mirror.finish({{"test": {{"accuracy": 0.71}}, "best": None}}, exit_code)
"""


def script(body: str, tmp_path: Path, *, terminal: bool = False, **environment: str) -> SimpleNamespace:
    """Run Python code far from this process: with a home and a working directory of its own, both empty."""
    home, cwd, outputs = tmp_path / "home", tmp_path / "cwd", tmp_path / "outputs"
    for folder in (home, cwd, outputs):
        folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "NETRC", "COV"))}
    clean |= {"HOME": str(home), "PYTHONPATH": str(Path(loggers.__file__).parents[1])} | environment
    command = [sys.executable, "-c", PREAMBLE + body, str(outputs)]
    start = time.monotonic()
    said = tmp_path / "said"
    with said.open("w") as file:
        if terminal:
            ours, theirs = pty.openpty()
            done = subprocess.run(command, cwd=cwd, env=clean, stdin=theirs, stdout=theirs, stderr=theirs)
            os.set_blocking(ours, False)
            said.write_bytes(os.read(ours, 1 << 16))
        else:  # standard input is closed
            done = subprocess.run(command, cwd=cwd, env=clean, stdout=file, stderr=file, preexec_fn=lambda: os.close(0))
    seconds = time.monotonic() - start
    text = said.read_text()
    assert done.returncode == 0, text
    assert not list(cwd.iterdir()), "written to the working directory"
    assert not list(home.rglob("*")), "written to the home directory"
    return SimpleNamespace(lines=text.splitlines(), outputs=outputs, seconds=seconds)


TWO_RUNS = """
train(loggers.start(OPTIONS, info(outputs / "a", "aaaa")))
train(loggers.start(OPTIONS, info(outputs / "b", "bbbb", job_type="teacher")), exit_code=1)
"""
A_RESUME = """
train(loggers.start(OPTIONS, info(outputs / "a", "aaaa", resumed=True)), range(1, 3))
"""


def test_offline_runs_read_back(tmp_path):
    done = script(TWO_RUNS + A_RESUME, tmp_path)

    # one line a run and nothing else; no question asked, though nobody is there to answer
    first, second = offline(done.outputs / "a")
    (other,) = offline(done.outputs / "b")
    said = "INFO W&B offline (no key: `wandb login` stores one); to upload: wandb sync "
    assert done.lines == [f"{said}{run.file.parent}" for run in (first, other, second)]

    assert (first.run.run_id, first.run.display_name) == ("aaaa", "kd-aaaa")
    assert (first.run.project, first.run.run_group, first.run.job_type) == ("kdbench", "kd-digits", "distill")
    assert list(first.run.tags) == ["kd", "digits", "t" * 64, "mine"]
    assert first.config["method"] == {"name": "kd", "temperature": 4.0}
    assert first.config["a_b"] == {"c_d": 1}
    assert first.step_metric["*"] == "epoch"
    assert first.history == [
        {"epoch": 0, "train/loss": 1.0, "val/accuracy": 0.5},
        {"epoch": 1, "train/loss": 0.5, "val/accuracy": 0.5},
    ]
    assert (first.summary["test/accuracy"], first.summary["best"], first.exit_code) == (0.71, None, 0)

    # the process's second run is one of its own, and failed
    assert (other.run.run_id, other.run.job_type, other.exit_code) == ("bbbb", "teacher", 1)
    assert [row["epoch"] for row in other.history] == [0, 1]
    # the resumed one is the first again
    assert (second.run.run_id, second.run.resume) == ("aaaa", True)
    assert [row["epoch"] for row in second.history] == [1, 2]


def test_a_terminal_is_not_asked(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, terminal=True)
    assert len(done.lines) == 1
    assert done.lines[0].startswith("INFO W&B offline (no key")


def test_a_home_that_cannot_be_written_is_not_mentioned(tmp_path):
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, HOME=home, WANDB_MODE="offline")
    assert len(done.lines) == 1
    assert done.lines[0].startswith("INFO W&B offline (WANDB_MODE)")


def test_key_lookup(tmp_path):
    body = """
import os, wandb
def look(wanted="auto", **environment):
    loggers._has_key.cache_clear()
    os.environ.update(environment)
    print(wanted, *loggers.wandb_mode(wanted), sep=",")
    wandb.teardown()
    for name in environment: del os.environ[name]
look()
look("online")
look(WANDB_API_KEY="k" * 40)
look(WANDB_API_KEY="k" * 40, WANDB_MODE="offline")
look(WANDB_API_KEY="k" * 40, WANDB_MODE="disabled")
look("disabled", WANDB_MODE="online")
Path(outputs, "netrc").write_text("machine api.wandb.ai login user password " + "k" * 40)
look(NETRC=str(outputs / "netrc"), WANDB_BASE_URL="https://api.wandb.ai")
Path(outputs, "settings").write_text("[default]\\napi_key = " + "k" * 40)
look(WANDB_CONFIG_DIR=str(outputs))
"""
    no_key = "offline,no key: `wandb login` stores one"
    assert script(body, tmp_path).lines == [
        f"auto,{no_key}",
        f"online,{no_key}",
        "auto,online,a key was found",
        "auto,offline,WANDB_MODE",
        "auto,disabled,WANDB_MODE",
        "disabled,disabled,logger.mode=disabled",
        "auto,online,a key was found",
        "auto,online,a key was found",
    ]


def test_disabled_leaves_nothing(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, WANDB_MODE="disabled")
    assert done.lines == []
    assert not list(done.outputs.iterdir())


def test_key_that_cannot_be_one(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, WANDB_API_KEY="short")
    (line,) = done.lines
    assert line.startswith("WARNING wandb mirror is off for this run: start: AuthenticationError")
    assert "short" not in line


# ------------------------------------------------------------------------------------------- a server


def test_online_run_reaches_the_server(tmp_path, server):
    body = "train(loggers.start(OPTIONS, info(outputs)), exit_code=1)"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert done.lines == [f"INFO W&B online: {server.url}/me/kdbench/runs/0123456789ab"]
    assert [(row["epoch"], row["train/loss"]) for row in server.history["0123456789ab"]] == [(0, 1), (1, 0.5)]
    assert json.loads(server.got["/upload/wandb-summary.json"])["test/accuracy"] == 0.71
    assert (server.got["complete"], server.got["exitcode"]) == (True, 1)


SHORT = "loggers._SETTINGS.update(init_timeout=2.0, finish_timeout=2.0)\n"


def test_server_lost_on_the_way(tmp_path, server):
    server.deaf_after_start = True
    body = SHORT + "train(loggers.start(OPTIONS, info(outputs)))\nprint('the run goes on')"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    online, warning, end = done.lines
    assert online.startswith("INFO W&B online")
    assert warning.startswith("WARNING wandb mirror is off for this run: finish: TimeoutError: not all was uploaded")
    assert end == "the run goes on"
    (file,) = done.outputs.glob("wandb/run-*/run-*.wandb")
    assert str(file.parent) in warning
    assert len(stored(file).history) == 2


def test_unreachable_server_means_offline(tmp_path):
    body = SHORT + TWO_RUNS
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=NOBODY)
    assert len(done.lines) == 2
    for line in done.lines:
        assert re.match(r"WARNING W&B offline \(CommError: .*\); to upload: wandb sync ", line)
    for name in "ab":
        (run,) = offline(done.outputs / name)
        assert [row["epoch"] for row in run.history] == [0, 1]


@pytest.mark.slow
def test_unreachable_server_costs_bounded_time(tmp_path):
    body = "train(loggers.start(OPTIONS, info(outputs)))"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=NOBODY)
    assert len(offline(done.outputs)) == 1
    assert done.seconds < 40


# ---------------------------------------------------------------------------------------- errors of W&B


@pytest.fixture
def fake(monkeypatch) -> SimpleNamespace:
    """A `wandb.init` that notes how it was called; its run notes too, and breaks where told to."""
    import wandb

    fake = SimpleNamespace(calls=[], logged=[], ended=[], broken="")

    def act(name: str, notes: list[Any], value: Any) -> None:
        notes.append(value)
        if name == fake.broken:
            raise RuntimeError(f"{name}\nis broken")

    def init(**arguments: Any) -> SimpleNamespace:
        act("init", fake.calls, arguments)
        return SimpleNamespace(
            url="https://example.org",
            settings=SimpleNamespace(sync_dir="there"),
            summary={},
            define_metric=lambda *_, **__: None,
            log=lambda row, step, commit: act("log", fake.logged, row),
            finish=lambda exit_code: act("finish", fake.ended, exit_code),
        )

    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(loggers, "_has_key", lambda: True)
    return fake


def test_arguments_of_init(tmp_path, fake):
    run = info(tmp_path)
    loggers.start({**OPTIONS, "entity": "us", "group": "study"}, run).finish({}, 143)
    (call,) = fake.calls
    assert call["mode"] == "online"
    assert (call["project"], call["entity"], call["group"]) == ("kdbench", "us", "study")
    assert (call["id"], call["dir"], call["resume"]) == (run.id, tmp_path, "allow")
    assert call["reinit"] == "finish_previous"
    assert call["settings"].console == "off"
    assert fake.ended == [143]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_an_error_is_one_warning(tmp_path, fake, caplog, broken):
    fake.broken = broken
    with caplog.at_level(logging.WARNING, "kdbench"):
        mirror = loggers.start({**OPTIONS, "mode": "offline"}, info(tmp_path))
        for epoch in range(3):
            mirror.log({"train/loss": 1.0}, epoch)
        mirror.finish({"test": {"accuracy": 0.5}}, 1)
        mirror.finish({}, 0)
    doing = {"init": "start"}.get(broken, broken)
    assert caplog.messages == [f"wandb mirror is off for this run: {doing}: RuntimeError: {broken} is broken"]
    assert len(fake.logged) == {"init": 0, "log": 1, "finish": 3}[broken]
    assert fake.ended == ([] if broken == "init" else [1])


def test_the_user_can_interrupt(tmp_path, fake, monkeypatch):
    mirror = loggers.start(OPTIONS, info(tmp_path))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loggers._Wandb, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mirror.log({}, 0)


# ------------------------------------------------------------------------------------------- local mirrors


def test_csv_has_the_whole_history_after_a_resume(tmp_path):
    source, target = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"

    def attempt(rows: list[dict[str, float]]) -> None:
        mirror = loggers.start({"kind": "csv"}, info(tmp_path))
        for row in rows:
            with source.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            mirror.log({}, int(row["epoch"]))
        assert target.read_text().count("\n") == 1 + source.read_text().count("\n")
        mirror.finish({}, 0)

    attempt([{"train/loss": 1.5, "epoch": 0}])
    attempt([{"epoch": 1, "train/loss": 0.5, "val/accuracy": 0.25}])
    assert target.read_text() == "epoch,train/loss,val/accuracy\n0,1.5,\n1,0.5,0.25\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_csv_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n')
    (tmp_path / "metrics.csv").mkdir()
    with caplog.at_level(logging.WARNING, "kdbench"):
        mirror = loggers.start({"kind": "csv"}, info(tmp_path))
        mirror.log({}, 0)
        mirror.log({}, 1)
        mirror.finish({}, 0)
    (message,) = caplog.messages
    assert message.startswith("csv mirror is off for this run: log: IsADirectoryError")


def test_tensorboard_resumes_without_doubled_points(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    for epochs, shift in ((range(4), 0.0), (range(2, 5), 100.0)):  # the second attempt repeats epochs 2 and 3
        mirror = loggers.start({"kind": "tensorboard"}, info(tmp_path))
        for epoch in epochs:
            mirror.log({"train/loss": epoch + shift}, epoch)
        if shift:
            mirror.finish({"test": {"accuracy": 0.5}, "best": None, "note": "words"}, 0)
    written = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in written.Scalars("train/loss")]
    assert points == [(0, 0.0), (1, 1.0), (2, 102.0), (3, 103.0), (4, 104.0)]
    assert written.Scalars("final/test/accuracy")[0].value == 0.5
    assert written.Tags()["scalars"] == ["train/loss", "final/test/accuracy"]

    # an attempt with no epoch left to train keeps the history
    mirror = loggers.start({"kind": "tensorboard"}, info(tmp_path))
    mirror.finish({"test": {"accuracy": 0.75}}, 0)
    written = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(written.Scalars("train/loss")) == 5
    assert written.Scalars("final/test/accuracy")[-1].value == 0.75


def test_missing_tensorboard_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install kdbench\[tensorboard\]"):
        loggers.check({"kind": "tensorboard"})


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"logger\.kind=mlflow .* wandb, csv, tensorboard, none"):
        loggers.start({"kind": "mlflow"}, info(tmp_path))


def test_none_writes_nothing(tmp_path):
    mirror = loggers.start({"kind": "none"}, info(tmp_path))
    mirror.log({"train/loss": 1.0}, 0)
    mirror.finish({}, 0)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("file", sorted((CONF / "logger").glob("*.yaml")), ids=lambda file: file.stem)
def test_options(file):
    values = yaml.safe_load(file.read_text())
    known = rules(f"logger/{file.stem}")
    assert values["kind"] == file.stem
    assert set(known) == set(values)
    assert [key for key, rule in known.items() if rule.refusal(values[key])] == []
    loggers.check(values)


def test_every_kind_has_options():
    assert {file.stem for file in (CONF / "logger").glob("*.yaml")} == set(loggers._KINDS)
    assert set(yaml.safe_load((CONF / "logger" / "wandb.yaml").read_text())) == set(OPTIONS)

"""The W&B mirror writes what can be read back, follows keys and modes, and never hangs or clutters a run."""

import json
import re

import pytest

from kdbench import loggers
from tests.helpers.mirrors import OPTIONS, info, script
from tests.helpers.wandb_files import offline, stored
from tests.helpers.wandb_server import KEY

UNREACHABLE = "http://127.0.0.1:9"  # refuses connections
TWO_RUNS = """
train(loggers.start(OPTIONS, info(outputs / "a", "aaaa")))
train(loggers.start(OPTIONS, info(outputs / "b", "bbbb", job_type="teacher")), exit_code=1)
"""
RESUME = """
train(loggers.start(OPTIONS, info(outputs / "a", "aaaa")), range(1, 3))
"""


def test_offline_runs_can_be_read_back(tmp_path):
    done = script(TWO_RUNS + RESUME, tmp_path)

    # one line per run and nothing else: no prompt, although there is no key
    first, second = offline(done.outputs / "a")
    (other,) = offline(done.outputs / "b")
    message = "INFO W&B offline (no key: `wandb login` stores one); to upload: wandb sync "
    assert done.lines == [f"{message}{run.file.parent}" for run in (first, other, second)]

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

    # the second run of the process is separate, and it failed
    assert (other.run.run_id, other.run.job_type, other.exit_code) == ("bbbb", "teacher", 1)
    assert [row["epoch"] for row in other.history] == [0, 1]
    # the resumed run has the id of the first
    assert (second.run.run_id, second.run.resume) == ("aaaa", True)
    assert [row["epoch"] for row in second.history] == [1, 2]


def test_there_is_no_prompt_on_a_terminal(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, terminal=True)
    assert len(done.lines) == 1
    assert done.lines[0].startswith("INFO W&B offline (no key")


def test_a_home_that_cannot_be_written_causes_no_message(tmp_path):
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, HOME=home, WANDB_MODE="offline")
    assert len(done.lines) == 1
    assert done.lines[0].startswith("INFO W&B offline (WANDB_MODE)")


def test_key_lookup(tmp_path):
    body = """
import os, wandb
from kdbench.loggers.wandb import _has_key, wandb_mode
def look(requested="auto", **environment):
    _has_key.cache_clear()
    os.environ.update(environment)
    print(requested, *wandb_mode(requested), sep=",")
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


def test_disabled_writes_nothing(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, WANDB_MODE="disabled")
    assert done.lines == []
    assert not list(done.outputs.iterdir())


def test_a_malformed_key_is_one_warning_that_does_not_show_it(tmp_path):
    done = script("train(loggers.start(OPTIONS, info(outputs)))", tmp_path, WANDB_API_KEY="short")
    (line,) = done.lines
    assert line.startswith("WARNING wandb mirror is off for this run: start: AuthenticationError")
    assert "short" not in line


def test_an_online_run_reaches_the_server(tmp_path, server):
    body = "train(loggers.start(OPTIONS, info(outputs)), exit_code=1)"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert done.lines == [f"INFO W&B online: {server.url}/me/kdbench/runs/0123456789ab"]
    assert [(row["epoch"], row["train/loss"]) for row in server.history["0123456789ab"]] == [(0, 1), (1, 0.5)]
    assert json.loads(server.received["/upload/wandb-summary.json"])["test/accuracy"] == 0.71
    assert (server.received["complete"], server.received["exitcode"]) == (True, 1)


SHORT_TIMEOUTS = """
from kdbench.loggers.wandb import _SETTINGS
_SETTINGS.update(init_timeout=2.0, finish_timeout=2.0)
"""


def test_a_server_lost_during_the_run_is_one_warning(tmp_path, server):
    server.deaf_after_start = True
    body = SHORT_TIMEOUTS + "train(loggers.start(OPTIONS, info(outputs)))\nprint('the run goes on')"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    online, warning, end = done.lines
    assert online.startswith("INFO W&B online")
    assert warning.startswith(
        "WARNING wandb mirror is off for this run: finish: TimeoutError: not everything was uploaded"
    )
    assert end == "the run goes on"
    (file,) = done.outputs.glob("wandb/run-*/run-*.wandb")
    assert str(file.parent) in warning
    assert len(stored(file).history) == 2


def test_with_an_unreachable_server_runs_are_offline(tmp_path):
    done = script(SHORT_TIMEOUTS + TWO_RUNS, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=UNREACHABLE)
    assert len(done.lines) == 2
    for line in done.lines:
        assert re.match(r"WARNING W&B offline \(CommError: .*\); to upload: wandb sync ", line)
    for name in "ab":
        (run,) = offline(done.outputs / name)
        assert [row["epoch"] for row in run.history] == [0, 1]


@pytest.mark.slow
def test_an_unreachable_server_costs_bounded_time(tmp_path):
    body = "train(loggers.start(OPTIONS, info(outputs)))"
    done = script(body, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=UNREACHABLE)
    assert len(offline(done.outputs)) == 1
    assert done.seconds < 40


def test_arguments_of_init(tmp_path, fake_wandb):
    run = info(tmp_path)
    loggers.start({**OPTIONS, "entity": "us", "group": "study"}, run).finish({}, 143)
    (call,) = fake_wandb.init
    assert call["mode"] == "online"
    assert (call["project"], call["entity"], call["group"]) == ("kdbench", "us", "study")
    assert (call["id"], call["dir"], call["resume"]) == (run.id, tmp_path, "allow")
    assert call["reinit"] == "create_new"
    assert call["settings"].console == "off"
    assert fake_wandb.finish == [143]

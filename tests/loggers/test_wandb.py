"""A sweep in W&B: one run a job, grouped by setting; sent from its offline files; named rightly by the dashboard."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from filelock import FileLock

from kdbench import cli, loggers, sync
from kdbench.config import composed
from kdbench.errors import UserError
from kdbench.records.record import Record, all_records
from tests.helpers.tiny import TINY
from tests.test_loggers import script
from tests.helpers.wandb_server import KEY, offline

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of wandb-workspaces
SWEEP = [
    *(word for word in TINY if not word.startswith(("logger", "recipe.epochs"))),
    "recipe.epochs=2", "noise=symmetric", "imbalance=longtail", "imbalance.factor=2", "logger=wandb",
    "logger.mode=offline",
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Outputs of a real sweep."""
    outputs = tmp_path_factory.mktemp("outputs")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"KDBENCH_OUTPUTS": str(outputs), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "kdbench.train", "-m", "method=ce,kd", "seed=0,1", *SWEEP]
    subprocess.run(command, env=environment, check=True, cwd=outputs)
    return outputs


def runs(outputs):
    """What the only attempt of every run wrote for W&B, by the run's directory."""
    return {record.directory.name: offline(record.directory)[0] for record in records(outputs)}


def test_a_sweep_gives_one_run_a_job_and_its_teacher_once(swept):
    found = runs(swept)
    assert [len(offline(swept / "runs" / name)) for name in found] == [1] * 5
    kinds = sorted((run.run.job_type, run.config["method"]["name"], run.config["seed"]) for run in found.values())
    assert kinds == [
        ("baseline", "ce", 0), ("baseline", "ce", 1), ("distill", "kd", 0), ("distill", "kd", 1),
        ("teacher", "ce", 0),
    ]  # fmt: skip
    for name, run in found.items():
        assert name == f"{run.run.display_name}-{run.run.run_id}"
        assert list(run.run.tags) == [run.config["method"]["name"], "fake", "symmetric", "longtail"]
        assert run.exit_code == 0
        assert [row["epoch"] for row in run.history] == [0, 1]


def test_a_group_holds_the_seeds_of_a_setting_and_nothing_else(swept):
    groups = defaultdict(list)
    for run in runs(swept).values():
        groups[run.run.run_group.rpartition("-")[0]].append((run.run.job_type, run.config["seed"]))
    rest = "fake-symmetric0.4-longtail2"
    assert {name: sorted(seeds) for name, seeds in groups.items()} == {
        f"ce-resnet8-{rest}": [("baseline", 0), ("baseline", 1)],
        f"kd-resnet14-resnet8-{rest}": [("distill", 0), ("distill", 1)],
        f"ce-resnet14-{rest}": [("teacher", 0)],
    }
    assert len({run.run.run_group for run in runs(swept).values()}) == 3


def test_the_summary_is_the_result_under_names_that_can_be_plotted(swept):
    for name, run in runs(swept).items():
        result = json.loads((swept / "runs" / name / "result.json").read_text())
        for group in ("test", "val", "cost"):
            for key, value in result[group].items():
                if not isinstance(value, list | dict):
                    assert run.summary[f"{group}/{key}"] == value
        assert not any(isinstance(value, list | dict) for value in run.summary.values())
        assert run.history[-1]["val/accuracy"] == result["val"]["accuracy"]


# ------------------------------------------------------------------------------------------------ sync


@pytest.fixture
def to_send(swept, tmp_path, monkeypatch):
    """A copy of the sweep's outputs, and a machine on which W&B has neither key nor mode."""
    outputs = tmp_path / "outputs"
    subprocess.run(["cp", "-r", swept, outputs], check=True)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_MODE"):  # what is set meanwhile is taken back
        monkeypatch.setenv(name, "false")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(outputs))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    loggers._has_key.cache_clear()
    yield outputs
    loggers._has_key.cache_clear()


@pytest.fixture
def account(server, monkeypatch, to_send):
    """The same machine with a key for the stand-in server."""
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    wandb.teardown()  # it reads the environment once
    yield server
    wandb.teardown()


def test_what_is_sent_arrives_whole_and_is_not_sent_again(to_send, account, monkeypatch, capfd, tmp_path_factory):
    monkeypatch.setenv("WANDB_MODE", "offline")  # as where the runs were made
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert cli.main(["sync"]) == 0
    assert not list(Path().iterdir())
    assert "5 of 5 sent" in capfd.readouterr().out
    expected = runs(to_send)
    assert set(account.history) == {run.run.run_id for run in expected.values()}
    for run in expected.values():
        rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in account.history[run.run.run_id]]
        assert rows == run.history
        assert account.runs[run.run.run_id]["groupName"] == run.run.run_group
        assert account.runs[run.run.run_id]["project"] == "kdbench"

    account.history.clear()
    assert cli.main(["sync"]) == 0
    assert "runs to send: 0," in capfd.readouterr().out
    assert not account.history


def test_what_the_server_refuses_is_named_and_sent_the_next_time(to_send, account, capfd):
    refused = next(records(to_send))
    account.refused = {refused.id}
    assert cli.main(["sync", "--project", "other", "--entity", "us"]) == 1
    said = capfd.readouterr()
    assert "no such project" in said.err
    assert [line for line in said.out.splitlines() if line.startswith("not sent")] == [
        f"not sent, see wandb's errors above: {refused.directory}"
    ]
    assert "4 of 5 sent" in said.out
    assert {(told["project"], told["entity"]) for told in account.runs.values()} == {("other", "us")}

    account.refused = set()
    account.history.clear()
    assert cli.main(["sync"]) == 0
    assert "1 of 1 sent" in capfd.readouterr().out
    assert set(account.history) == {refused.id}


def test_a_run_under_way_and_one_set_aside_are_left_alone(to_send, capfd):
    first, second, *rest = records(to_send)
    place = second.directory / "previous" / "2026-01-01_00-00-00-1"
    place.mkdir(parents=True)
    (second.directory / "wandb").rename(place / "wandb")
    with FileLock(first.directory / ".lock"):
        assert cli.main(["sync", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "runs to send: 3," in said
    assert "under way, left alone until they end: 1\n" in said
    assert "set aside by force=true, left alone: 1\n" in said
    for record in rest:
        assert record.directory.name in said
    assert f"\n{first.directory.name}" not in said
    assert f"\n{second.directory.name}" not in said


def test_without_a_key_nothing_is_tried(to_send, capfd):
    assert cli.main(["sync"]) == 2
    said = capfd.readouterr()
    assert said.err == "error: W&B has no key: `wandb login` stores one, or set WANDB_API_KEY\n"
    assert not list(to_send.rglob("*.synced"))


def test_with_nothing_to_send_no_key_is_needed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(tmp_path))
    assert cli.main(["sync"]) == 0
    assert capfd.readouterr().out == f"offline W&B runs to send: 0, below {tmp_path}\n"


def test_of_a_killed_and_continued_run_all_epochs_are_sent(account, tmp_path, monkeypatch, capfd):
    attempts = """
import json, time
directory = outputs / "runs" / "kd-s0-0123456789ab"
def attempt(epochs, **news):
    mirror = loggers.start(OPTIONS, info(directory, **news))
    for epoch in epochs:
        with (directory / "metrics.jsonl").open("a") as rows:
            rows.write(json.dumps({"epoch": epoch, "stage": "train", "train/loss": 1 / (epoch + 1)}) + "\\n")
        mirror.log({"train/loss": 1 / (epoch + 1)}, epoch)
    mirror.finish({}, 0)
attempt(range(2))
time.sleep(1.1)  # a directory has the second of its start in its name
attempt(range(2, 4), resumed=True)
"""
    (tmp_path / "other").mkdir()
    done = script(attempts, tmp_path / "other", WANDB_MODE="offline")
    first, _ = sorted(done.outputs.glob("runs/*/wandb/offline-run-*/*.wandb"))
    first.write_bytes(first.read_bytes()[:7])  # as SIGKILL leaves it
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(done.outputs))
    assert cli.main(["sync"]) == 0
    assert "1 of 1 sent" in capfd.readouterr().out
    sent = [(row["epoch"], row["_step"], row["train/loss"]) for row in account.history["0123456789ab"]]
    assert sent == [(0, 0, 1), (1, 1, 1 / 2), (2, 2, 1 / 3), (3, 3, 1 / 4)]
    assert "stage" not in account.history["0123456789ab"][0]
    assert cli.main(["sync"]) == 0
    assert "runs to send: 0," in capfd.readouterr().out


def test_what_a_killed_run_leaves_is_not_sent_and_says_why(to_send, account, capfd):
    killed = next(records(to_send))
    (killed.directory / "result.json").unlink()
    (killed.directory / "status.json").write_text('{"state": "running"}')
    file = sync.unsent(killed.directory)
    file.write_bytes(file.read_bytes()[:7])
    assert cli.main(["sync"]) == 1
    said = capfd.readouterr().out
    assert f"{killed.directory} (interrupted; once continued and finished it can be)\n" in said
    assert "4 of 5 sent" in said


def test_the_newest_attempt_is_the_one_to_send(tmp_path):
    def attempt(name):
        file = tmp_path / "wandb" / f"{name}-0123456789ab" / "run-0123456789ab.wandb"
        file.parent.mkdir(parents=True)
        file.touch()
        return file

    assert sync.unsent(tmp_path) is None
    attempt("offline-run-20260102_000000")
    newest = attempt("offline-run-20260103_000000")
    attempt("offline-run-20260101_235959")
    (tmp_path / "wandb" / "latest-run").symlink_to(newest.parent)
    assert sync.unsent(tmp_path) == newest
    newest.with_suffix(".wandb.synced").touch()
    assert sync.unsent(tmp_path) is None
    newer = attempt("offline-run-20260104_000000")
    assert sync.unsent(tmp_path) == newer
    attempt("run-20260105_000000")  # that one was online
    assert sync.unsent(tmp_path) is None


def test_a_run_that_was_forced_again_has_an_id_of_its_own(tmp_path):
    directory = tmp_path / "kd-s0-0123456789ab"
    directory.mkdir()
    assert Record(directory).attempt == "0123456789ab"
    for time in ("a", "b"):
        (directory / "previous" / time).mkdir(parents=True)
    assert Record(directory).attempt == "0123456789ab-3"


# ------------------------------------------------------------------------------------------------ dashboard

SCRIPT = Path(__file__).parents[1] / "scripts" / "wandb_dashboard.py"


@pytest.fixture(scope="module")
def dashboard():
    spec = importlib.util.spec_from_file_location("wandb_dashboard", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dicts(node):
    """Every mapping in a JSON value."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dicts(child)


def named_keys(plan):
    """What a plan names, by where it has to be: `history`, `summary`, `config`, `run`, and patterns of history keys."""
    found = defaultdict(set)
    for node in dicts(plan):
        config = node.get("config", {})
        match node.get("viewType"):
            case "Bar Chart":
                found["summary"] |= {*config["metrics"]}
            case "Run History Line Plot":
                found["history"] |= {*config["metrics"], config["xAxis"]}
                found["pattern"] |= {config["metricRegex"]} if "metricRegex" in config else set()
            case "Scatter Plot":
                for axis in ("xAxis", "yAxis"):
                    section, _, name = config[axis].partition(":")
                    found[section].add(name)
        if "groupBy" in node:
            found["run"].add(node["groupBy"])
        if set(node) == {"section", "name"}:  # filters, groups, orders
            found[node["section"]].add(node["name"])
        for column in node.get("columnOrder", []):
            section, _, name = column.partition(":")
            found[section].add(name)
    return found


def holds(config, path):
    """Whether a configuration has the key that the app calls `<first>.value.<rest>`."""
    first, value, *rest = path.split(".")
    assert value == "value"
    for part in (first, *rest):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("which", ["workspace", "report"])
def test_the_dashboard_names_nothing_that_runs_do_not_write(swept, dashboard, which):
    written = list(runs(swept).values())
    history = {key for run in written for row in run.history for key in row}
    summary = {key for run in written for key in run.summary}
    named = named_keys(dashboard.plan(dashboard.workspace("me", "kdbench"), dashboard.report("me", "kdbench"))[which])
    assert {"val/accuracy", "train/loss", "train/kd", "epoch"} <= named["history"]
    assert {"test/accuracy", "cost/train_seconds", "teacher/test_accuracy"} <= named["summary"]
    assert named["history"] - history == set()
    assert named["summary"] - summary == set()
    assert all(any(re.search(pattern, key) for key in history) for pattern in named["pattern"])

    configs = [*(run.config for run in written), from_overrides(["imbalance=power_law"])]  # that one has gamma
    assert {key for key in named["config"] if not any(holds(config, key) for config in configs)} == set()
    assert named["run"] == {"group", "jobType", "displayName", "state"}
    assert all(run.run.run_group and run.run.job_type for run in written)
    assert set(named) <= {"history", "summary", "pattern", "config", "run"}


def test_settings_are_the_bars_and_seeds_their_spread(dashboard):
    panels = [node for node in dicts(dashboard.workspace("me", "kdbench")._spec) if "viewType" in node]
    aggregated = [panel["config"] for panel in panels if "groupBy" in panel["config"]]
    assert len(aggregated) > 20
    for config in aggregated:
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("group", "mean", "stddev")
    assert panels[0]["config"]["metrics"] == ["test/accuracy"]


def test_the_baseline_is_a_method_or_an_id(swept, dashboard, tmp_path):
    by_name = {record.name: record for record in records(swept)}
    first = by_name["ce-resnet8-fake-symmetric0.4-longtail2-s0"]
    assert dashboard.baseline_run("ce", swept) == first.id
    assert dashboard.baseline_run("0123456789ab-2", tmp_path) == "0123456789ab-2"
    with pytest.raises(UserError, match=r"--baseline at: below .* no finished W&B run"):
        dashboard.baseline_run("at", swept)

    copied = json.loads((first.directory / "result.json").read_text())
    copied["config"]["recipe"]["epochs"] = 3
    for name, config in (("a", first.config), ("b", copied["config"])):
        directory = tmp_path / "runs" / f"ce-{name}-0123456789ab"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps({**copied, "config": config}))
    with pytest.raises(UserError, match=r"--baseline ce: .* several settings: ce-resnet8.*, ce-resnet8.*id of a run"):
        dashboard.baseline_run("ce", tmp_path)

    view = dashboard.workspace("me", "kdbench", baseline=first.id)
    (runset,) = view._spec["spec"]["section"]["runSets"]
    assert base64.b64decode(runset["baselineRunId"]).decode() == f"Run:v1:{first.id}:kdbench:me"


def bare(node):
    """A plan without its random ids, and without the project that only the server knows."""
    if isinstance(node, list):
        return [bare(child) for child in node]
    if isinstance(node, dict):
        return {key: bare(child) for key, child in node.items() if key not in ("id", "__id__", "project")}
    return node


def test_a_dry_run_prints_what_would_be_sent(dashboard, account, capsys):
    words = ["--entity", "me", "--baseline", "0123456789ab"]
    assert dashboard.main([*words, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert account.views == []

    assert dashboard.main(words) == 0
    sent = {view["type"]: json.loads(view["spec"]) for view in account.views}
    assert bare(sent["project-view"]) == bare(plan["workspace"])
    assert bare(sent["runs"]) == bare(plan["report"])
    assert {(view["entityName"], view["projectName"]) for view in account.views} == {("me", "kdbench")}
    assert [line.split("/me/kdbench")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"report: {account.url}", f"workspace: {account.url}",
    ]  # fmt: skip


def test_a_project_that_is_not_there_is_one_line_and_nothing_is_saved(dashboard, account, capsys):
    assert dashboard.main(["--entity", "me", "--project", "other"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: not saved: ValueError: Run set 'students' project 'me/other' not found")
    assert said.count("\n") == 1
    assert account.views == []


def test_without_a_key_there_is_no_dashboard(dashboard, to_send, capsys):
    assert dashboard.main(["--entity", "me"]) == 2
    assert capsys.readouterr().err == "error: W&B has no key: `wandb login` stores one, or set WANDB_API_KEY\n"

"""The dashboard shows only what runs write, and a dry run prints what would be sent."""

import base64
import importlib.util
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from kdbench.config.overrides import from_overrides
from kdbench.errors import UserError
from kdbench.records.record import all_records
from tests.helpers.wandb_files import first_attempts

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of wandb-workspaces
SCRIPT = Path(__file__).parents[2] / "scripts" / "wandb_dashboard.py"


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


def keys_of(plan):
    """The keys that a plan shows by their source (`history`, `summary`, `config`, `run`), and its history patterns."""
    keys = defaultdict(set)
    for node in dicts(plan):
        config = node.get("config", {})
        match node.get("viewType"):
            case "Bar Chart":
                keys["summary"] |= {*config["metrics"]}
            case "Run History Line Plot":
                keys["history"] |= {*config["metrics"], config["xAxis"]}
                keys["pattern"] |= {config["metricRegex"]} if "metricRegex" in config else set()
            case "Scatter Plot":
                for axis in ("xAxis", "yAxis"):
                    section, _, name = config[axis].partition(":")
                    keys[section].add(name)
        if "groupBy" in node:
            keys["run"].add(node["groupBy"])
        if set(node) == {"section", "name"}:  # filters, groups, orders
            keys[node["section"]].add(node["name"])
        for column in node.get("columnOrder", []):
            section, _, name = column.partition(":")
            keys[section].add(name)
    return keys


def has_key(config, path):
    """Whether a configuration has the key that the app names `<first>.value.<rest>`."""
    first, value, *rest = path.split(".")
    assert value == "value"
    for part in (first, *rest):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_the_dashboard_shows_only_keys_that_runs_write(swept, dashboard, part):
    runs = list(first_attempts(swept).values())
    history = {key for run in runs for row in run.history for key in row}
    summary = {key for run in runs for key in run.summary}
    shown = keys_of(dashboard.plan(dashboard.workspace("me", "kdbench"), dashboard.report("me", "kdbench"))[part])
    assert {"val/accuracy", "train/loss", "train/kd", "epoch"} <= shown["history"]
    assert {"test/accuracy", "cost/train_seconds", "teacher/test_accuracy"} <= shown["summary"]
    assert shown["history"] - history == set()
    assert shown["summary"] - summary == set()
    assert all(any(re.search(pattern, key) for key in history) for pattern in shown["pattern"])

    configs = [*(run.config for run in runs), from_overrides(["imbalance=power_law"])]  # the sweep has no gamma
    assert {key for key in shown["config"] if not any(has_key(config, key) for config in configs)} == set()
    assert shown["run"] == {"group", "jobType", "displayName", "state"}
    assert all(run.run.run_group and run.run.job_type for run in runs)
    assert set(shown) <= {"history", "summary", "pattern", "config", "run"}


def test_bars_and_lines_are_settings_with_the_spread_over_their_seeds(dashboard):
    panels = [node for node in dicts(dashboard.workspace("me", "kdbench")._spec) if "viewType" in node]
    aggregated = [panel["config"] for panel in panels if "groupBy" in panel["config"]]
    assert len(aggregated) > 20
    for config in aggregated:
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("group", "mean", "stddev")
    assert panels[0]["config"]["metrics"] == ["test/accuracy"]


def test_the_baseline_is_a_method_or_an_id(swept, dashboard, tmp_path):
    by_name = {record.name: record for record in all_records(swept)}
    first = by_name["ce-resnet8-fake-symmetric0.4-longtail2-s0"]
    assert dashboard.baseline_run("ce", swept) == first.id
    assert dashboard.baseline_run("kd", swept) == by_name["kd-resnet14-resnet8-fake-symmetric0.4-longtail2-s0"].id
    assert dashboard.baseline_run("0123456789ab-2", tmp_path) == "0123456789ab-2"
    with pytest.raises(UserError, match=r"--baseline at: there is no finished W&B run of this method below "):
        dashboard.baseline_run("at", swept)

    copied = json.loads((first.directory / "result.json").read_text())
    copied["config"]["recipe"]["epochs"] = 3
    for name, config in (("a", first.config), ("b", copied["config"])):
        directory = tmp_path / "runs" / f"ce-{name}-0123456789ab"
        directory.mkdir(parents=True)
        (directory / "result.json").write_text(json.dumps({**copied, "config": config}))
    with pytest.raises(UserError, match=r"--baseline ce: .* several settings: ce-a-.*, ce-b-.*; give the id of a run"):
        dashboard.baseline_run("ce", tmp_path)

    view = dashboard.workspace("me", "kdbench", baseline=first.id)
    (runset,) = view._spec["spec"]["section"]["runSets"]
    assert base64.b64decode(runset["baselineRunId"]).decode() == f"Run:v1:{first.id}:kdbench:me"


def bare(node):
    """A plan without its random ids and without the project, which only the server knows."""
    if isinstance(node, list):
        return [bare(child) for child in node]
    if isinstance(node, dict):
        return {key: bare(child) for key, child in node.items() if key not in ("id", "__id__", "project")}
    return node


def test_a_dry_run_prints_what_would_be_sent(dashboard, account, capsys):
    arguments = ["--entity", "me", "--baseline", "0123456789ab"]
    assert dashboard.main([*arguments, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert account.views == []

    assert dashboard.main(arguments) == 0
    sent = {view["type"]: json.loads(view["spec"]) for view in account.views}
    assert bare(sent["project-view"]) == bare(plan["workspace"])
    assert bare(sent["runs"]) == bare(plan["report"])
    assert {(view["entityName"], view["projectName"]) for view in account.views} == {("me", "kdbench")}
    assert [line.split("/me/kdbench")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"report: {account.url}", f"workspace: {account.url}",
    ]  # fmt: skip


def test_for_a_missing_project_there_is_a_one_line_error_and_nothing_is_saved(dashboard, account, capsys):
    assert dashboard.main(["--entity", "me", "--project", "other"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: not saved: ValueError: Run set 'students' project 'me/other' not found")
    assert message.count("\n") == 1
    assert account.views == []


def test_without_a_key_there_is_no_dashboard(dashboard, outputs, capsys):
    assert dashboard.main(["--entity", "me"]) == 2
    assert capsys.readouterr().err == "error: W&B has no key: `wandb login` stores one, or set WANDB_API_KEY\n"

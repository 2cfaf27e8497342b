"""A sweep in W&B: one run per job, grouped by setting, with the result as its summary."""

import json
from collections import defaultdict

from tests.helpers.wandb_files import first_attempts, offline


def test_a_sweep_has_one_run_per_job_and_its_teacher_once(swept):
    runs = first_attempts(swept)
    assert [len(offline(swept / "runs" / name)) for name in runs] == [1] * 5
    kinds = sorted((run.run.job_type, run.config["method"]["name"], run.config["seed"]) for run in runs.values())
    assert kinds == [
        ("baseline", "ce", 0), ("baseline", "ce", 1), ("distill", "kd", 0), ("distill", "kd", 1),
        ("teacher", "ce", 0),
    ]  # fmt: skip
    for name, run in runs.items():
        assert name == f"{run.run.display_name}-{run.run.run_id}"
        assert list(run.run.tags) == [run.config["method"]["name"], "fake", "symmetric", "longtail"]
        assert run.exit_code == 0
        assert [row["epoch"] for row in run.history] == [0, 1]


def test_a_group_consists_of_the_seeds_of_a_setting(swept):
    groups = defaultdict(list)
    runs = first_attempts(swept).values()
    for run in runs:
        groups[run.run.run_group.rpartition("-")[0]].append((run.run.job_type, run.config["seed"]))
    data = "fake-symmetric0.4-longtail2"
    assert {name: sorted(seeds) for name, seeds in groups.items()} == {
        f"ce-resnet8-{data}": [("baseline", 0), ("baseline", 1)],
        f"kd-resnet14-resnet8-{data}": [("distill", 0), ("distill", 1)],
        f"ce-resnet14-{data}": [("teacher", 0)],
    }
    assert len({run.run.run_group for run in runs}) == 3


def test_the_summary_has_the_numbers_of_the_result(swept):
    for name, run in first_attempts(swept).items():
        result = json.loads((swept / "runs" / name / "result.json").read_text())
        for group in ("test", "val", "cost"):
            for key, value in result[group].items():
                if not isinstance(value, list | dict):
                    assert run.summary[f"{group}/{key}"] == value
        assert not any(isinstance(value, list | dict) for value in run.summary.values())
        assert run.history[-1]["val/accuracy"] == result["val"]["accuracy"]

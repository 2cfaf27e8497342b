"""Real sweeps through launchers that have processes; each plug-in is an extra."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.helpers.tiny import TINY, launch

LAUNCHERS = [
    pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "hydra_joblib_launcher", id="joblib"),
    pytest.param(["hydra/launcher=submitit_local"], "hydra_submitit_launcher", id="submitit", marks=pytest.mark.slow),
    pytest.param(["hydra/launcher=ray"], "hydra_ray_launcher", id="ray", marks=pytest.mark.slow),
]
# in children: a network of more than 100,000 parameters (resnet14) is killed, the small one is not
PLANTED = ["method=killed", "student=resnet14,resnet8", "recipe.epochs=1"]


@pytest.fixture
def planted(tmp_path):
    """Overrides of a sweep over a method of one's own, of which the process is killed."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    text = "name: killed\n_target_: tests.helpers.planted.KilledWhenLarge\nneeds: []\n"
    (tmp_path / "conf" / "method" / "killed.yaml").write_text(text)
    return [*PLANTED, f"hydra.searchpath=[file://{tmp_path}/conf]"]


def sweep(*overrides, **options):
    return launch(["-m", *TINY, *overrides], start_new_session=True, **options)


@pytest.mark.parametrize(("launcher", "plugin"), LAUNCHERS)
def test_a_job_that_is_killed_ends_alone(launcher, plugin, planted, tmp_path):
    pytest.importorskip(f"hydra_plugins.{plugin}")
    process = sweep(*planted, f"outputs={tmp_path}", *launcher)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "killed by SIGKILL (out of memory?)" in output
    assert "error: 1 of 2 jobs failed; the same command tries them again" in output
    assert "Traceback" not in output
    (result,) = tmp_path.glob("runs/*/result.json")
    assert json.loads(result.read_text())["name"] == "killed-resnet8-fake-s0"


@pytest.mark.parametrize(("launcher", "plugin"), LAUNCHERS)
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_results_are_those_of_the_basic_launcher(launcher, plugin, tmp_path):
    pytest.importorskip(f"hydra_plugins.{plugin}")
    weights = []
    for number, words in enumerate(([], launcher)):
        process = sweep("method=ce,kd", "seed=0,1", "recipe.epochs=1", f"outputs={tmp_path}/{number}", *words)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        logs = [path.read_text() for path in tmp_path.glob(f"{number}/runs/*/train.log")]
        assert [text.count("training images") for text in logs] == [1] * (4 + 1)  # each trained once
        found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{number}/runs/*/result.json"))]
        weights.append({result["id"]: (result["weights_sha256"], result["test"]) for result in found})
    assert len(weights[0]) == 5
    assert weights[0] == weights[1]


def processes_of(session):
    """Processes of a session, none of them a zombie."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [args for sid, stat, args in rows if int(sid) == session and not stat.startswith("Z")]


@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"]
)
@pytest.mark.parametrize("whole_group", [True, False], ids=["from-the-terminal", "sent-to-the-sweep"])
def test_ctrl_c_ends_a_sweep_cleanly(launcher, whole_group, tmp_path):
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = sweep("method=ce", "seed=0,1,2", "recipe.epochs=5000", f"outputs={tmp_path}", *launcher)
    for line in process.stdout:
        if "epoch 3/" in line:
            break
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    said = [line for line in output.splitlines() if "  epoch " not in line and "training images" not in line]
    assert [line for line in said if not line.startswith("job ")] == [
        "interrupted; the same command continues from the last checkpoint: kdbench-train -m "
        + " ".join([*TINY, "method=ce", "seed=0,1,2", "recipe.epochs=5000", f"outputs={tmp_path}", *launcher])
    ]
    until = time.monotonic() + 20
    while processes_of(process.pid) and time.monotonic() < until:
        time.sleep(0.2)
    assert processes_of(process.pid) == []


def test_a_search_for_the_least_accuracy_is_refused(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "method=ce", "recipe.lr=interval(0.01,0.2)"]
    process = sweep(*words, f"outputs={tmp_path}")
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert "hydra.sweeper.direction=minimize is not allowed" in output.splitlines()[-1]


@pytest.mark.slow
def test_a_search_finds_the_best_validation_accuracy(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "method=ce"]
    process = sweep(*words, "hydra.sweeper.n_jobs=1", "recipe.lr=interval(0.01,0.2)", f"outputs={tmp_path}")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert len(found) == 3
    (best,) = tmp_path.glob("sweeps/*/optimization_results.yaml")
    assert f"best_value: {max(result['val']['accuracy'] for result in found)}" in best.read_text()

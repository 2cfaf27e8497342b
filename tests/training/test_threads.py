"""`trainer.threads`: how many threads of the CPU a run uses, and what its record says of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from kdbench.training import threads
from kdbench.training.assemble import assemble, untrained_teacher
from kdbench.training.threads import share_of_job, threads_of
from tests.helpers.tiny import TINY, launch

AUTO = {"threads": None}


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine with eight cores and no OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "effective_n_jobs", lambda count: 8 if count == -1 else count)


@pytest.fixture
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_single_run_uses_all_cores(eight_cores):
    assert threads_of(AUTO) == 8
    assert threads_of({}) == 8  # a record of an earlier version


@pytest.mark.parametrize(("value", "expected"), {"3": 3, " 5 ": 5, "4,2": 4, "0": 8, "-1": 8, "all": 8, "": 8}.items())
def test_openmp_variable_decides_unless_a_number_is_given(eight_cores, monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_of(AUTO) == expected
    assert threads_of({"threads": 6}) == 6


def test_without_any_setting_torch_keeps_its_own_number():
    """What runs used before the key existed, so that their results stay the same."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    program = (
        "import torch; from kdbench.training.threads import threads_of; print(torch.get_num_threads(), threads_of({}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    own, ours = output.stdout.split()
    assert own == ours


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.usefixtures("_threads_restored")
def test_the_number_given_is_used_and_recorded(tiny, number):
    record = tiny("method=ce", "recipe.epochs=1", f"trainer.threads={number}")
    assert torch.get_num_threads() == number
    assert record.environment["threads"] == number


@pytest.mark.usefixtures("_threads_restored")
def test_a_run_does_not_inherit_the_number_of_the_run_before(words, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for overrides, expected in ((["trainer.threads=2"], 2), ([], 1)):
        spec = spec_of(words(*overrides))
        assemble(spec, untrained_teacher(spec))
        assert torch.get_num_threads() == expected


def test_the_number_is_not_part_of_the_identity():
    assert spec_of([*TINY, "trainer.threads=2"]).id == spec_of(TINY).id


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "all"])
def test_other_values_are_refused(value):
    with pytest.raises(UserError, match=rf"trainer\.threads={value} is not allowed: it must be int > 0 or null"):
        spec_of([*TINY, f"trainer.threads={value}"])


JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher."
RAY = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", "ray": {"remote": {}}}


@pytest.mark.parametrize(
    ("launcher", "jobs", "expected"),
    [
        ({**JOBLIB, "n_jobs": 2}, 6, 4),
        ({**JOBLIB, "n_jobs": 3}, 6, 2),
        ({**JOBLIB, "n_jobs": -1}, 20, 1),
        ({**JOBLIB, "n_jobs": -1}, 2, 4),  # more cores than jobs
        ({**JOBLIB, "n_jobs": 20}, 20, 1),
        ({"_target_": f"{SUBMITIT}LocalLauncher", "cpus_per_task": None}, 3, 2),
        ({"_target_": f"{SUBMITIT}LocalLauncher", "cpus_per_task": 3}, 3, 3),
        ({"_target_": f"{SUBMITIT}SlurmLauncher", "cpus_per_task": 16}, 3, 16),
        ({"_target_": f"{SUBMITIT}SlurmLauncher", "cpus_per_task": None}, 3, None),
        (RAY, 3, None),
    ],
)
def test_a_job_beside_others_gets_its_share(eight_cores, launcher, jobs, expected):
    assert share_of_job(launcher, jobs) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "jobs", "expected"),
    [(None, 2, threads.cpu_count() // 2 or 1), (None, 1, threads.cpu_count()), ("2", 2, 2)],
)
def test_jobs_of_a_joblib_sweep_share_the_cores(tmp_path, variable, jobs, expected):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": variable} if variable else {}
    words = ["method=ce", f"seed={','.join(map(str, range(jobs)))}", "recipe.epochs=1", f"outputs={tmp_path}"]
    sweep = ["-m", *TINY, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    output, _ = launch(sweep, env=environment).communicate(timeout=250)
    files = list(tmp_path.glob("runs/*/env.json"))
    assert len(files) == jobs, output
    assert [json.loads(file.read_text())["threads"] for file in files] == [expected] * jobs

"""The threads that a sweep gives to jobs that a launcher runs side by side."""

import json
import os

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from kdbench.sweeps.grid import read
from kdbench.sweeps.sweep import Sweep
from kdbench.training import threads
from tests.helpers.tiny import TINY

VARIABLE = "+hydra.job.env_set.OMP_NUM_THREADS"
JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}
BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


class Noting:
    """A launcher that notes the overrides of its jobs, and does none of them."""

    def __init__(self, launcher, env_set):
        self.config = OmegaConf.create({"hydra": {"launcher": launcher, "job": {"env_set": env_set}}})
        self.jobs = []

    def launch(self, jobs, initial_job_idx):
        self.jobs += jobs
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]


def given_by(launcher, env_set, tmp_path, finished=0):
    """What about threads is given to each job of a grid of three that is not finished."""
    noting, grid = Noting(launcher, env_set), read([*TINY, "method=ce", "seed=0,1,2", f"outputs={tmp_path}"])
    for task in grid.tasks[:finished]:
        task.spec.directory.mkdir(parents=True)
        (task.spec.directory / "result.json").write_text(json.dumps({"config": task.spec.config, "cost": {}}))
    Sweep(grid, noting).carry_out()
    assert len(noting.jobs) == 3 - finished
    return [[word for word in job if "OMP_NUM_THREADS" in word] for job in noting.jobs]


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_count", lambda: 8)


def test_each_job_beside_others_gets_its_share_of_the_cores(tmp_path):
    assert given_by(JOBLIB, {}, tmp_path) == [[f"{VARIABLE}='4'"]] * 3


def test_the_last_job_of_a_sweep_that_goes_on_gets_no_more_than_before(tmp_path):
    assert given_by(JOBLIB, {}, tmp_path, finished=2) == [[f"{VARIABLE}='4'"]]


def test_jobs_one_after_the_other_have_all_cores(tmp_path):
    assert given_by(BASIC, {}, tmp_path) == [[]] * 3


def test_what_the_user_has_set_holds(tmp_path, monkeypatch):
    assert given_by(JOBLIB, {"OMP_NUM_THREADS": "3"}, tmp_path) == [[]] * 3
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "2")
    assert given_by(JOBLIB, {}, tmp_path) == [[]] * 3

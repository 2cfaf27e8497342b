import json
import subprocess
import sys
from itertools import chain

import pytest
from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus

from kdbench.errors import RunFailed, UserError
from kdbench.sweeps import grid, plan
from kdbench.sweeps.estimates import Estimates
from kdbench.sweeps.grid import Refused, Same, Task
from kdbench.sweeps.sweep import Sweep
from tests.helpers.tiny import TINY


@pytest.fixture
def read(words):
    return lambda *overrides: grid.read(words(*overrides))


def leave(task, host="elsewhere", rows=0, **files):
    """Leave the record of a run in a task's place."""
    directory = task.spec.directory
    directory.mkdir(parents=True)
    files.setdefault("status", {"state": "running"})
    files["status"]["host"] = host
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "metrics.jsonl").write_text('{"epoch": 0}\n' * rows)


def finish(task, seconds=1.0, **more):
    leave(task, result={"config": task.spec.config, "cost": {"train_seconds": seconds}}, **more)


# ------------------------------------------------------------------------------------------------ the grid


def test_the_jobs_are_those_of_hydra_in_its_order(read):
    jobs = read("method=ce,ls", "seed=range(1,4)", "recipe.lr=choice(0.1,0.2)").jobs
    assert [(job.overrides[-3], job.overrides[-2], job.overrides[-1]) for job in jobs] == [
        (f"method={method}", f"seed={seed}", f"recipe.lr={lr}")
        for method in ("ce", "ls") for seed in (1, 2, 3) for lr in (0.1, 0.2)
    ]  # fmt: skip
    assert [job.label for job in jobs] == [f"job {number}/12" for number in range(1, 13)]
    assert [job.spec.config["seed"] for job in jobs][:4] == [1, 1, 2, 2]


def test_a_preset_may_hold_the_grid(read, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "study.yaml").write_text(
        "# @package _global_\nrecipe: {lr: 0.3}\nhydra: {sweeper: {params: {seed: '5,6', method: 'ce,ls'}}}\n"
    )
    found = read("experiment=study", f"hydra.searchpath=[file://{tmp_path}]", "method=ce")
    assert [
        (job.spec.config["seed"], job.spec.config["method"]["name"], job.spec.config["recipe"]["lr"])
        for job in found.tasks
    ] == [
        (5, "ce", 0.3),
        (6, "ce", 0.3),
    ]


def test_states_are_those_of_the_records(read):
    names = ("done", "failed", "interrupted", "running", "to do")
    tasks = read("method=ce", f"seed=range({len(names)})").tasks
    finish(tasks[0])
    leave(tasks[1], status={"state": "failed"})
    leave(tasks[2])
    leave(tasks[3])
    with FileLock(tasks[3].spec.directory / ".lock"):
        assert [task.state for task in tasks] == list(names)


def test_what_is_done_is_to_do_again_by_force(read):
    finish(read("method=ce", "seed=0,1").tasks[0])
    assert [task.state for task in read("method=ce", "seed=0,1", "force=true").tasks] == ["to do", "to do"]


def test_a_teacher_is_one_job_however_many_wait_for_it(read):
    found = read("method=ce,kd,at", "seed=0,1", "noise=none,symmetric")
    assert [(task.label, task.spec.name, task.waiting) for task in found.teachers] == [
        ("teacher 1/2", "ce-resnet14-fake-s0", 4),
        ("teacher 2/2", "ce-resnet14-fake-symmetric0.4-s0", 4),
    ]
    finish(found.teachers[0])
    assert [task.spec.name for task in read("method=kd", "seed=0,1", "noise=none,symmetric").teachers] == [
        "ce-resnet14-fake-symmetric0.4-s0"
    ]


def test_the_lightweight_teacher_is_a_job_too(words):
    found = grid.read(words("method=lwkd", "dataset.num_classes=10", "dataset.image_size=28", "dataset.channels=1"))
    assert [task.spec.config["dataset"]["name"] for task in found.teachers] == ["synmnist"]


def test_a_teacher_that_is_a_job_of_the_grid_is_not_listed_twice(read):
    found = read("method=ce,kd", "student=resnet14")
    assert not found.teachers
    assert found.tasks[1].needs == [found.tasks[0].spec.directory]


def test_two_jobs_that_are_the_same_run_are_one(read):
    jobs = read("method=ce,kd", "teacher=resnet14,resnet20").jobs
    assert [type(job) for job in jobs] == [Task, Task, Same, Task]
    assert jobs[2].as_label == "job 1/4"


def test_a_job_that_cannot_be_is_refused_with_its_reason(read):
    jobs = read("method=kd,at", "method.temperature=2")
    assert isinstance(jobs.jobs[0], Task)
    assert isinstance(jobs.jobs[1], Refused)
    assert "method.temperature" in jobs.jobs[1].why
    jobs = read("method=ce", "recipe.epochs=2,0").jobs
    assert jobs[1].why == "recipe.epochs=0 is not allowed: it must be int > 0"


def test_what_is_wrong_with_all_jobs_is_an_error(read):
    with pytest.raises(UserError, match=r"unknown key recipe\.epoch; nearest: recipe\.epochs"):
        read("method=ce,kd", "recipe.epoch=2")
    with pytest.raises(UserError, match="method=kdd is not known; nearest: kd"):
        read("method=kdd", "seed=0,1")


# ------------------------------------------------------------------------------------------------ the plan


def test_time_is_the_median_pace_of_finished_runs_of_the_kind_times_the_epochs_left(read):
    for task, seconds in zip(read("method=ce", "seed=1,2,3", "recipe.epochs=10").tasks, (10, 20, 40), strict=True):
        finish(task, seconds=seconds)
    tasks = read("method=ce,ls", "seed=7,8", "recipe.epochs=50", "recipe.lr=0.3").tasks
    leave(tasks[1], rows=20)
    estimates = [Estimates().of(task) for task in tasks]
    assert [estimate.seconds for estimate in estimates] == [2 * 50, 2 * 30, None, None]
    sizes = sorted(
        sum(file.stat().st_size for file in task.spec.directory.iterdir())
        for task in read("method=ce", "seed=1,2,3", "recipe.epochs=10").tasks
    )
    assert [estimate.size for estimate in estimates] == [sizes[1], sizes[1], None, None]


@pytest.mark.parametrize(
    "word", ["student=resnet14", "recipe.batch_size=8", "dataset.num_train=60", "trainer.max_batches=2"]
)
def test_runs_of_another_kind_say_nothing(read, word):
    finish(read("method=ce", "seed=0").tasks[0])
    assert Estimates().of(read("method=ce", "seed=1", word).tasks[0]).seconds is None
    assert Estimates().of(read("method=ce", "seed=1").tasks[0]).seconds == 1


def test_runs_of_this_host_are_believed_rather_than_others(read):
    import platform

    tasks = read("method=ce", "seed=0,1,2").tasks
    finish(tasks[0], seconds=300)
    finish(tasks[1], seconds=30, host=platform.node())
    assert Estimates().of(tasks[2]).seconds == 30


def test_the_summary_counts_states_time_and_disk():
    rows = [
        {"label": "teacher 1/1", "state": "to do", "seconds": 30.0, "bytes": 1e6},
        {"label": "job 1/4", "state": "done", "seconds": 0.0, "bytes": 0.0},
        {"label": "job 2/4", "state": "to do", "seconds": 7200.0, "bytes": 2e6},
        {"label": "job 3/4", "state": "failed", "seconds": None, "bytes": None},
        {"label": "job 4/4", "state": "same", "seconds": 0.0, "bytes": 0.0},
    ]
    assert plan.summary(rows) == (
        "4 jobs: 1 done, 1 to do, 1 failed before, 1 the same as another; 1 teacher to train first\n"
        "left: 2.0 h and 1 unknown of training, one after another; 3.0 MB and 1 unknown on disk"
    )
    assert plan.summary(rows[1:2]) == "1 jobs: 1 done"


def test_spans_and_volumes_are_said_as_people_do():
    assert [plan.span(seconds) for seconds in (0.4, 40, 89, 90, 720, 5399, 12600)] == [
        "0 s", "40 s", "89 s", "2 min", "12 min", "90 min", "3.5 h",
    ]  # fmt: skip
    assert [plan.volume(size) for size in (1.2e6, 2.5e9)] == ["1.2 MB", "2.5 GB"]


def test_the_plan_is_listed_without_torch(words, tmp_path):
    code = "import sys; from kdbench import cli; rc = cli.main(sys.argv[1:]); print('torch' in sys.modules, rc)"
    command = [sys.executable, "-c", code, "plan", "-m", *words("method=ce,kd", "seed=0,1"), "--json", f"{tmp_path}/p"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False 0"
    assert "4 jobs: 4 to do; 1 teacher to train first" in done.stdout
    rows = json.loads((tmp_path / "p").read_text())
    assert [row["label"] for row in rows] == ["teacher 1/1", *(f"job {number}/4" for number in (1, 2, 3, 4))]


# ------------------------------------------------------------------------------------------------ the sweep


class Elsewhere:
    """A launcher that notes what it is given, and ends each job as it is told to."""

    def __init__(self, *endings):
        self.batches, self.endings = [], dict(endings)

    def launch(self, words, initial_job_idx):
        self.batches.append([_label(job) for job in words])
        ends = [self.endings.get(_label(job)) for job in words]
        if any(isinstance(end, OSError) for end in ends):
            raise OSError("the cluster does not answer")
        states = [JobStatus.FAILED if end else JobStatus.COMPLETED for end in ends]
        return [JobReturn(status=state, _return_value=end) for state, end in zip(states, ends, strict=True)]


class BasicLauncher(Elsewhere):
    pass


def _label(words):
    return next(word.partition("=")[2].strip("'") for word in words if word.startswith("hydra.job.name"))


def test_processes_get_teachers_and_what_needs_none_first(read):
    launcher = Elsewhere()
    Sweep(read("method=kd,ce,at"), launcher).carry_out()
    assert launcher.batches == [["teacher 1/1", "job 2/3"], ["job 1/3", "job 3/3"]]


def test_in_one_process_it_goes_one_by_one_and_what_is_done_is_skipped(read):
    finish(read("method=ce").tasks[0])
    launcher = BasicLauncher()
    Sweep(read("method=kd,ce,at"), launcher).carry_out()
    assert launcher.batches == [["teacher 1/1"], ["job 1/3"], ["job 3/3"]]


def test_what_another_process_is_at_is_put_off(read):
    found = read("method=ce", "seed=0,1,2")
    leave(found.tasks[0])
    launcher = BasicLauncher()
    with FileLock(found.tasks[0].spec.directory / ".lock"):
        Sweep(found, launcher).carry_out()
    assert launcher.batches == [["job 2/3"], ["job 3/3"], ["job 1/3"]]


@pytest.mark.parametrize("kind", [Elsewhere, BasicLauncher])
def test_jobs_whose_teacher_fails_are_not_tried(read, kind, capsys):
    launcher = kind(("teacher 1/1", RunFailed("ce failed: no memory; see its log", "no memory")))
    with pytest.raises(RunFailed, match="2 of 3 jobs failed; the same command tries them again"):
        Sweep(read("method=kd,ce,at"), launcher).carry_out()
    assert list(chain(*launcher.batches)) == ["teacher 1/1", "job 2/3"]
    shown = capsys.readouterr().out
    assert "no memory" in shown
    assert shown.count("its teacher failed") >= 2


def test_one_failure_does_not_stop_the_others_and_is_in_the_table(read, capsys):
    launcher = BasicLauncher(("job 1/3", RunFailed("...", "loss is not finite")), ("job 2/3", KeyError("bug")))
    sweep = Sweep(read("method=ce", "seed=0,1,2"), launcher)
    with pytest.raises(RunFailed, match="2 of 3 jobs failed"):
        sweep.carry_out()
    assert len(launcher.batches) == 3
    assert [failure.why for failure in sweep.failures] == ["loss is not finite", "KeyError: 'bug'"]
    assert "loss is not finite" in capsys.readouterr().out


def test_a_launcher_that_breaks_is_no_end_of_the_sweep(read):
    finish(read("method=ce").tasks[0])
    sweep = Sweep(read("method=kd,ls,ce"), Elsewhere(("teacher 1/1", OSError())))
    with pytest.raises(RunFailed, match="2 of 3 jobs failed"):
        sweep.carry_out()
    assert [failure.why for failure in sweep.failures] == ["not done: the launcher stopped"] * 2 + [
        "its teacher failed"
    ]


def test_planted_failures_in_a_real_sweep(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "bad.safetensors").write_bytes(b"\0\1\2" * 1000)
    for name, text in {
        "good": "seed: 0",
        "teacherless": f"method: {{alpha: 0.5}}\nteacher: {{checkpoint: {tmp_path}/bad.safetensors}}",
        "diverging": "method: {alpha: 0.5}\nrecipe: {lr: 1.0e+8}\nteacher: {recipe: {lr: 0.1}}",
    }.items():
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    words = [*TINY, "recipe.epochs=1", f"outputs={tmp_path}/outputs", f"hydra.searchpath=[file://{tmp_path}/mine]"]
    command = [
        sys.executable,
        "-m",
        "kdbench.train",
        "-m",
        "experiment=teacherless,diverging,good",
        "method=kd",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "error: job 1/3" in done.stderr, output
    assert "NonFiniteLoss" in done.stdout  # in the table
    assert "bad.safetensors is refused" in done.stderr  # when it happens; the table folds long paths
    assert "error: 2 of 3 jobs failed; the same command tries them again" in done.stderr
    assert len(list(tmp_path.glob("outputs/runs/kd-*/result.json"))) == 1
    assert "Traceback" not in output


def test_a_wrong_word_ends_a_sweep_before_it_begins(words, tmp_path):
    command = [sys.executable, "-m", "kdbench.train", "-m", "method=ce,kd", *words("recipe.epoch=2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown key recipe.epoch; nearest: recipe.epochs,")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/runs/*"))


def test_the_stage_of_teachers_trains_them_and_no_student(tiny, tmp_path):
    tiny("stage=teachers", "recipe.epochs=1")
    assert [path.name.partition("-fake")[0] for path in tmp_path.glob("outputs/runs/*")] == ["ce-resnet14"]

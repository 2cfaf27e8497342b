"""Kill -9 at random moments, until the run is done: the record is that of a run nobody disturbed."""

import json
import random
import time

import pytest

from tests.helpers.tiny import TINY, launch, same

OVERRIDES = [*TINY, "recipe.epochs=40", "dataset.num_train=400"]


def launch_run(outputs):
    return launch([*OVERRIDES, f"outputs={outputs}"])


def wait_for_training(process):
    """Until a training begins, or the process ends."""
    for line in process.stdout:
        if "training images" in line:
            return


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills(tmp_path):
    whole = launch_run(tmp_path / "whole")
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    draw, kills, finished = random.Random(0), 0, 0
    while kills < 20:
        process = launch_run(tmp_path / "killed")
        if draw.random() < 0.8:  # the others die in their imports, or between two runs
            wait_for_training(process)
        time.sleep(draw.uniform(0, 0.8))
        if process.poll() is None:
            process.kill()
            kills += 1
        elif not process.returncode:  # it came to its end in between: begin anew
            finished += 1
            (tmp_path / "killed").rename(tmp_path / f"finished-{finished}")
        process.communicate()
    last = launch_run(tmp_path / "killed")
    output, _ = last.communicate()
    assert last.returncode == 0, output
    results = [same(json.loads(path.read_text())) for path in tmp_path.glob("*/runs/kd-*/result.json")]
    assert len(results) == finished + 2
    assert all(result == results[0] for result in results)


GRID = [
    "method=ce,kd,at,dml", "seed=0,1,2", "noise=none,symmetric", "dataset=digits", "student=resnet8",
    "teacher=resnet14", "recipe=quick", "recipe.epochs=2", "logger=none", "trainer=cpu",
    "trainer.checkpoint_seconds=0",
]  # fmt: skip


def sweep(outputs, *overrides):
    return launch(["-m", *GRID, f"outputs={outputs}", *overrides])


def finished(outputs):
    """Every result, with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in outputs.glob("runs/*/result.json")}


def results(outputs):
    return {path.parent.name: same(json.loads(path.read_text())) for path in outputs.glob("runs/*/result.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    process = sweep(outputs)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert len(results(outputs)) == 24 + 2  # two teachers: one for each noise
    return outputs


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_sweep_killed_ten_times(undisturbed, tmp_path):
    draw, kills, before = random.Random(0), 0, {}
    while kills < 10:
        process = sweep(tmp_path)
        jobs = draw.randrange(4)  # training begins so often before the kill
        for line in process.stdout:
            jobs -= "training images" in line
            if jobs < 0:
                break
        time.sleep(draw.uniform(0, 0.8))
        assert process.poll() is None, "the sweep ended before it was killed ten times"
        process.kill()
        process.communicate()
        kills += 1
        now = finished(tmp_path)
        assert {path: now[path] for path in before} == before  # nothing finished is trained again
        before = now
    last = sweep(tmp_path)
    output, _ = last.communicate()
    assert last.returncode == 0, output
    now = finished(tmp_path)
    assert {path: now[path] for path in before} == before
    assert results(tmp_path) == results(undisturbed)
    assert not list(tmp_path.glob("runs/*/previous"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_sweeps_race_for_the_same_runs(undisturbed, tmp_path):
    racers = [sweep(tmp_path, "trainer.progress=none") for _ in range(2)]
    outputs = [process.communicate()[0] for process in racers]
    assert [process.returncode for process in racers] == [0, 0], outputs
    begun = [line.split(":")[0] for output in outputs for line in output.splitlines() if "training images" in line]
    assert len(begun) == 24 + 2  # no training was begun twice
    assert all(output.count("training images") >= 5 for output in outputs)  # both helped
    assert results(tmp_path) == results(undisturbed)

"""Kill -9 at random moments, until the run is done: the record is that of a run nobody disturbed."""

import json
import random
import subprocess
import sys
import time

import pytest

from tests.conftest import TINY
from tests.test_train import same

WORDS = [*TINY, "recipe.epochs=40", "dataset.num_train=400"]


def launch(outputs):
    command = [sys.executable, "-m", "kdbench.train", *WORDS, f"outputs={outputs}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_training(process):
    """Until a training begins, or the process ends."""
    for line in process.stdout:
        if "training images" in line:
            return


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills(tmp_path):
    whole = launch(tmp_path / "whole")
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    draw, kills, finished = random.Random(0), 0, 0
    while kills < 20:
        process = launch(tmp_path / "killed")
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
    last = launch(tmp_path / "killed")
    output, _ = last.communicate()
    assert last.returncode == 0, output
    results = [same(json.loads(path.read_text())) for path in tmp_path.glob("*/runs/kd-*/result.json")]
    assert len(results) == finished + 2
    assert all(result == results[0] for result in results)

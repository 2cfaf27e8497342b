"""The smoke form in the header of every preset of a study, run as a person would."""

import subprocess
import sys
import time

import pytest

from kdbench.config import CONF, options
from kdbench.records.record import all_records

PRESETS = [name for name in options("experiment") if "/" in name]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_smoke_form_runs_within_a_minute(preset, tmp_path):
    lines = (CONF / f"experiment/{preset}.yaml").read_text().splitlines()
    words = next(line for line in lines if line.startswith("# smoke")).split()[3:]
    began = time.monotonic()
    command = [sys.executable, "-m", "kdbench.train", *words, f"outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert {record.state for record in records(tmp_path)} == {"finished"}

"""The smoke form in the header of every preset of a study, run as a person would."""

import subprocess
import sys
import time

import pytest

from kdbench.config.groups import header, options
from kdbench.records.record import all_records

PRESETS = [name for name in options("experiment") if "/" in name]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_smoke_form_runs_within_a_minute(preset, tmp_path):
    words = header(f"experiment/{preset}")["smoke"].split()[1:]
    began = time.monotonic()
    command = [sys.executable, "-m", "kdbench.train", *words, f"outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert {record.state for record in all_records(tmp_path)} == {"finished"}

"""Mirrors of a made-up run, also in a process of its own."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kdbench
from kdbench import loggers

OPTIONS = {"kind": "wandb", "mode": "auto", "project": "kdbench", "entity": None, "group": None, "tags": ["mine"]}


def info(directory: Path, id: str = "0123456789ab", **changes: Any) -> loggers.RunInfo:
    """A run in `directory`, which is created."""
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "id": id, "name": f"kd-{id}", "directory": directory, "group": "kd-digits", "job_type": "distill",
        "tags": ["kd", "digits", "t" * 80],
        "config": {"method": {"name": "kd", "temperature": 4.0}, "plus": {}, "seed": 0, "a.b": {"c.d": 1}},
    }  # fmt: skip
    return loggers.RunInfo(**(values | changes))


def train(mirror: loggers.Guarded, epochs: Iterable[int] = range(2), exit_code: int = 0) -> None:
    """Log some epochs and finish."""
    for epoch in epochs:
        mirror.log({"train/loss": 1.0 / (epoch + 1), "val/accuracy": 0.5}, epoch)
    mirror.finish({"test": {"accuracy": 0.71}, "best": None}, exit_code)


PREAMBLE = """
import logging, sys
from pathlib import Path
from kdbench import loggers
from tests.helpers.mirrors import OPTIONS, info, train
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stdout)
outputs = Path(sys.argv[1])
"""


def script(body: str, tmp_path: Path, *, terminal: bool = False, **environment: str) -> SimpleNamespace:
    """Run Python code in a process with an empty home, an empty working directory and no W&B key.

    Args:
        body: the code, after `PREAMBLE`.
        tmp_path: where the folders of the process are created.
        terminal: whether its input and output are a terminal; otherwise its input is closed.
        environment: further environment variables.

    Returns:
        The `lines` that it printed, its `outputs` folder, and the `seconds` that it took.
    """
    home, cwd, outputs = tmp_path / "home", tmp_path / "cwd", tmp_path / "outputs"
    for folder in (home, cwd, outputs):
        folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "XDG", "NETRC", "COV"))}
    clean |= {"HOME": str(home), "PYTHONPATH": str(Path(kdbench.__file__).parents[1])} | environment
    command = [sys.executable, "-c", PREAMBLE + body, str(outputs)]
    start = time.monotonic()
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        if terminal:
            ours, theirs = pty.openpty()
            process = subprocess.run(command, cwd=cwd, env=clean, stdin=theirs, stdout=theirs, stderr=theirs)
            os.set_blocking(ours, False)
            output.write_bytes(os.read(ours, 1 << 16))
        else:
            process = subprocess.run(
                command, cwd=cwd, env=clean, stdout=file, stderr=file, preexec_fn=lambda: os.close(0)
            )
    seconds = time.monotonic() - start
    text = output.read_text()
    assert process.returncode == 0, text
    assert not list(cwd.iterdir()), "written to the working directory"
    assert not list(home.rglob("*")), "written to the home directory"
    return SimpleNamespace(lines=text.splitlines(), outputs=outputs, seconds=seconds)

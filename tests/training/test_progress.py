"""What is on the screen."""

import os
import pty
import re
import subprocess
import sys

from tests.helpers.tiny import TINY


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.train", *TINY, f"outputs={tmp_path}", "method=ce"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    epochs = [line for line in lines if re.search(r"epoch \d/3  loss [\d.]+ ce [\d.]+  val [\d.]+%  [\d.]+ s$", line)]
    assert len(epochs) == 3
    assert len(lines) == 6, lines  # sizes, three epochs, test accuracy, record
    assert "\x1b" not in done.stdout


def test_one_bar_on_a_terminal(tmp_path):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kdbench.train", *TINY, f"outputs={tmp_path}", "method=kd", "recipe.epochs=60"],
        stdout=slave, stderr=slave, stdin=slave, env=environment,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the terminal is closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait(timeout=100) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"━.*\d+%.*left.*epoch \d+/60  loss [\d.]+ ce [\d.]+ kd [\d.]+  val [\d.]+%", text)
    assert "Error" not in text
    assert "warning" not in text.lower()

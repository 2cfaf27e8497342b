"""Files are whole or absent."""

import errno
import resource
import signal
import subprocess
import sys

import pytest

from kdbench.files import digest, read_json, read_lines, replace_with, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_with(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_larger_than_the_system_allows(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from kdbench.files import write_text
signal.signal({int(signal.SIGXFSZ)}, signal.SIG_IGN)
resource.setrlimit({resource.RLIMIT_FSIZE}, (1000, 1000))
write_text(Path({str(tmp_path / "big")!r}), "x" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_whole_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    path.write_text('{"a": ')
    assert read_json(path) is None
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
    assert list(read_lines(path)) == [{"epoch": 0}, {"epoch": 1}]
    assert list(read_lines(tmp_path / "none")) == []


def test_digest(tmp_path):
    write_text(tmp_path / "a", "abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

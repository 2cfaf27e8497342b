import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kdbench.records.answer_file import AnswerFile

POSITIONS = np.array([7, 0, 99, 42])


def rows_of(count, width, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 100])
def test_rows_are_read_as_they_were_written_and_the_others_are_missing(tmp_path, width, dtype):
    values = rows_of(4, width, dtype)
    file = AnswerFile(tmp_path / "x", 100, width, dtype)
    assert not file.read(np.arange(100))[1].any()
    file.write(POSITIONS, values)
    for opened in (file, AnswerFile(tmp_path / "x", 100, width, dtype)):
        back, there = opened.read(POSITIONS)
        assert there.all()
        assert back.dtype == dtype
        assert np.array_equal(back, values)
        assert opened.read(np.arange(100))[1].sum() == 4


def test_zeros_and_values_that_are_not_finite_are_rows_like_others(tmp_path):
    values = np.array([[0, 0], [np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    file = AnswerFile(tmp_path / "x", 3, 2, "float32")
    file.write(np.arange(3), values)
    back, there = file.read(np.arange(3))
    assert there.all()
    assert back.tobytes() == values.tobytes()


def test_a_row_with_any_wrong_bit_is_missing(tmp_path):
    file = AnswerFile(tmp_path / "x", 3, 3, "float32")
    file.write(np.array([1]), rows_of(1, 3))
    content = (tmp_path / "x").read_bytes()
    row = len(content) // 3
    for bit in range(8 * row, 16 * row):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x").write_bytes(wrong)
        there = AnswerFile(tmp_path / "x", 3, 3, "float32").read(np.array([1]))[1]
        assert not there.any(), bit


def test_a_row_in_another_place_or_of_half_a_write_is_missing(tmp_path):
    file = AnswerFile(tmp_path / "x", 3, 4, "float32")
    file.write(np.array([0, 1]), rows_of(2, 4))
    content = bytearray((tmp_path / "x").read_bytes())
    row = len(content) // 3
    moved = bytearray(content)
    moved[2 * row :] = content[:row]
    (tmp_path / "x").write_bytes(moved)
    assert AnswerFile(tmp_path / "x", 3, 4, "float32").read(np.arange(3))[1].tolist() == [True, True, False]
    content[row + 8 : 2 * row] = bytes(row - 8)
    (tmp_path / "x").write_bytes(content)
    assert AnswerFile(tmp_path / "x", 3, 4, "float32").read(np.arange(3))[1].tolist() == [True, False, False]


def test_garbage_is_missing(tmp_path):
    size = AnswerFile(tmp_path / "x", 1000, 10, "float32").size
    (tmp_path / "x").write_bytes(np.random.default_rng(0).bytes(size))
    assert not AnswerFile(tmp_path / "x", 1000, 10, "float32").read(np.arange(1000))[1].any()


def test_a_file_of_another_size_is_refused_and_not_touched(tmp_path):
    (tmp_path / "x").write_bytes(b"short")
    with pytest.raises(OSError, match=r"has 5 bytes instead of 240"):
        AnswerFile(tmp_path / "x", 10, 4, "float32")
    assert (tmp_path / "x").read_bytes() == b"short"


def test_an_empty_file_takes_hardly_any_disk(tmp_path):
    file = AnswerFile(tmp_path / "x", 10_000_000, 100, "float32")
    assert file.size > 4e9
    assert os.stat(tmp_path / "x").st_blocks * 512 < 1e6
    assert file.filled() == 0


def test_share_of_the_filled_rows_is_estimated(tmp_path):
    file = AnswerFile(tmp_path / "x", 10_000, 2, "float32")
    file.write(np.arange(0, 10_000, 4), np.zeros((2500, 2), np.float32))
    assert file.filled() == pytest.approx(0.25, abs=0.05)
    file.write(np.arange(10_000), np.zeros((10_000, 2), np.float32))
    assert file.filled() == 1


def test_a_full_disk_is_an_error_and_not_a_signal(tmp_path):
    program = """
import errno, numpy as np, resource, signal, sys
from pathlib import Path
from kdbench.records.answer_file import AnswerFile
file = AnswerFile(Path(sys.argv[1]), 1000, 100, "float32")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # stands in for the disk
try:
    file.write(np.arange(1000), np.ones((1000, 100), np.float32))
except OSError as error:
    assert error.errno == errno.EFBIG
    print(file.read(np.arange(1000))[1].sum())
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 4096 // 408


def test_writers_that_race_and_are_killed_leave_whole_rows(tmp_path):
    program = """
import numpy as np, sys
from pathlib import Path
from kdbench.records.answer_file import AnswerFile
file = AnswerFile(Path(sys.argv[1]), 1000, 50, "float32")
generator = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
while True:
    positions = generator.permutation(1000)[:64]
    file.write(positions, np.repeat(positions[:, None], 50, 1).astype(np.float32))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path / "x", str(n)], stdout=subprocess.PIPE)
        for n in range(2)
    ]
    file = AnswerFile(tmp_path / "x", 1000, 50, "float32")
    try:
        for writer in writers:
            writer.stdout.readline()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            values, there = file.read(np.arange(1000))
            assert (values[there] == np.arange(1000)[there, None]).all()
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    values, there = file.read(np.arange(1000))
    assert there.any()
    assert (values[there] == np.arange(1000)[there, None]).all()

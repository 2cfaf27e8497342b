"""Hashes of large files, remembered between processes so that an unchanged file is read only once."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.files import digest, read_json, write_json

# A file that is changed twice within one tick of the clock of its file system keeps its times.
SETTLED = 2e9  # nanoseconds after which another change gives other times


def cache_folder() -> Path:
    """Where hashes are remembered: $KDBENCH_CACHE, else ~/.cache/kdbench."""
    return Path(os.environ.get("KDBENCH_CACHE") or "~/.cache/kdbench").expanduser()


def cache_file() -> Path:
    """Where hashes of single files are remembered: `hashes.json` in the cache."""
    return cache_folder() / "hashes.json"


def state_of(status: os.stat_result) -> list[int]:
    """What tells a file from another one, or from an older state of itself: size, times in ns, inode.

    The time of the last status change also tells a file that was moved to a place from one that was there.
    """
    # an inode may use all 64 bits; 63 fit into a signed number
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)]


def is_settled(states: np.ndarray, now: int) -> np.ndarray:
    """Whether any change after `now` shows in the state of a file.

    Args:
        states: (..., 4), as of `state_of`.
        now: `time.time_ns()` before the files were read.

    Returns:
        (...) bool.
    """
    return now - states[..., 1:3].max(-1) > SETTLED


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex; the remembered one if path, size, times and inode are the same as then.

    Raises:
        OSError: the file cannot be read. Errors of the cache are ignored.
    """
    path, begin = path.absolute(), time.time_ns()
    state = state_of(path.stat())
    known = _known_hashes().get(str(path))
    if isinstance(known, dict) and known.get("state") == state and isinstance(known.get("sha256"), str):
        return known["sha256"]
    sha256 = digest(path)
    if is_settled(np.array(state), begin) and state == state_of(path.stat()):
        _remember(str(path), {"state": state, "sha256": sha256})
    return sha256


def _known_hashes() -> dict[str, Any]:
    with contextlib.suppress(OSError):
        content = read_json(cache_file())
        if isinstance(content, dict):
            return content
    return {}


def _remember(path: str, entry: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # without a place to write, files are hashed every time
        file = cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, _known_hashes() | {path: entry})

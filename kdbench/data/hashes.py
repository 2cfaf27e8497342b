"""Hashes of large files, remembered between processes so that an unchanged file is read only once."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from kdbench.files import digest, read_json, write_json

# A file that is changed twice within one tick of the clock of its file system keeps its times.
SETTLED = 2e9  # nanoseconds after which another change gives other times


def cache_file() -> Path:
    """Where hashes are remembered: `hashes.json` in $KDBENCH_CACHE, else in ~/.cache/kdbench."""
    return Path(os.environ.get("KDBENCH_CACHE") or "~/.cache/kdbench").expanduser() / "hashes.json"


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex; the remembered one if path, size, times and inode are the same as then.

    Raises:
        OSError: the file cannot be read. Errors of the cache are ignored.
    """
    path = path.absolute()
    status = path.stat()
    # the time of the last status change also tells a file that was moved here from one that was here
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    known = _known_hashes().get(str(path))
    if isinstance(known, dict) and known.get("state") == state and isinstance(known.get("sha256"), str):
        return known["sha256"]
    sha256 = digest(path)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED:
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

"""Files that are whole or absent: every record is written beside its place, flushed, then renamed into it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, force it to disk and rename it to `path`.

    Raises:
        OSError: what writing raised (a full disk, say); `path` is untouched and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    replace_with(path, lambda temporary: temporary.write_text(text))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the given order."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any | None:
    """Content of a JSON file; None if there is none, or if it is not whole."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return json.loads(path.read_text())
    return None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a file of one JSON object a line; a line cut short by a kill ends it."""
    if not path.exists():
        return
    with path.open() as handle:
        for line in handle:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

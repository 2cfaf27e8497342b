"""Hashes of the images of a tree, remembered between processes so that an unchanged image is read only once.

The cache has one file for each tree, with the name, the state and the hash of every image. It is read as a whole and,
where anything was hashed, replaced as a whole. Two processes that do so at once lose nothing but time.
"""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdbench.console import console
from kdbench.data.hashes import cache_folder, is_settled, state_of
from kdbench.errors import UserError
from kdbench.files import replace_with

CHUNK = 256  # images that a thread takes at a time
THREADS = 16  # more than there are CPUs: from slow disks, most of the time is waiting
PATIENCE = 2.0  # seconds before progress is shown
INTERVAL = 5.0  # seconds between two lines of progress
ATTEMPTS = 3  # to read an image that changes meanwhile
_DIGEST_BYTES = 32


class _Table(NamedTuple):
    """The remembered images of a tree.

    Attributes:
        names: (N,) bytes, relative to the tree.
        states: (N, 4) int64, as of `state_of`.
        hashes: (N, 32) uint8, SHA-256.
    """

    names: np.ndarray
    states: np.ndarray
    hashes: np.ndarray


_NOTHING = _Table(np.empty(0, "S1"), np.empty((0, 4), np.int64), np.empty((0, _DIGEST_BYTES), np.uint8))


def image_hashes(root: Path, names: np.ndarray) -> np.ndarray:
    """Hashes of the contents of images; the remembered one where path, size, times and inode are the same as then.

    Args:
        root: folder of the tree.
        names: (N,) file names as bytes, below `root`.

    Returns:
        (N, 32) uint8, the SHA-256 of each.

    Raises:
        UserError: an image cannot be read, or changes all the time; the message names it. Errors of the cache are
            ignored.
    """
    begin, count = time.time_ns(), len(names)
    states, digests = np.empty((count, 4), np.int64), np.empty((count, _DIGEST_BYTES), np.uint8)
    paths: list[bytes] = names.tolist()

    def look(chunk: np.ndarray) -> None:
        states[chunk] = [_state(paths[i]) for i in chunk]

    _in_threads(look, np.arange(count), f"checking {count:,} images of {root}")
    start = len(os.fsencode(root / "x")) - 1
    file, relative = _cache_file(root), np.array([path[start:] for path in paths])
    done = _recall(_read_table(file), relative, states, digests)
    missing = np.flatnonzero(~done)

    def read(chunk: np.ndarray) -> None:
        for i in chunk:
            states[i], digest = read_hash(paths[i])
            digests[i] = np.frombuffer(digest, np.uint8)
            done[i] = True

    try:
        _in_threads(read, missing, f"hashing {len(missing):,} images of {root}")
    finally:  # an interruption loses nothing
        kept = done & is_settled(states, begin)
        if kept[missing].any():
            _write_table(file, _Table(relative[kept], states[kept], digests[kept]))
    return digests


def read_hash(path: bytes) -> tuple[list[int], bytes]:
    """State and SHA-256 of a file, which did not change while it was read.

    Raises:
        UserError: it cannot be read, or changes each time.
    """
    try:
        for _ in range(ATTEMPTS):
            file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                state = state_of(os.fstat(file))
                content = os.read(file, state[0] + 1)
                if len(content) == state[0] and state_of(os.fstat(file)) == state:
                    return state, sha256(content).digest()
            finally:
                os.close(file)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise UserError(f"{os.fsdecode(path)}: changes while it is read")


def _state(path: bytes) -> list[int]:
    try:
        return state_of(os.stat(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: bytes, error: OSError) -> UserError:
    return UserError(f"{os.fsdecode(path)}: cannot be read ({error.strerror})")


def _in_threads(work: Callable[[np.ndarray], None], numbers: np.ndarray, what: str) -> None:
    """Call `work` with numbers in chunks; show how far it is where that takes long."""
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    pool = ThreadPoolExecutor(THREADS)
    news = time.monotonic() + PATIENCE
    try:
        for finished, _ in enumerate(pool.map(work, chunks), 1):
            if time.monotonic() >= news and finished < len(chunks):
                news = time.monotonic() + INTERVAL
                console.print(f"{what}: {100 * finished // len(chunks)} %")
    finally:
        pool.shutdown(cancel_futures=True)


def _cache_file(root: Path) -> Path:
    return cache_folder() / "trees" / f"{sha256(os.fsencode(root.absolute())).hexdigest()[:32]}.npz"


def _recall(table: _Table, names: np.ndarray, states: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Fill in the hashes of the images that are as they were.

    Args:
        table: what is remembered.
        names: (N,) bytes, relative to the tree.
        states: (N, 4), of the images as they are now.
        digests: (N, 32), which is filled in.

    Returns:
        (N,) bool, which of them are filled in.
    """
    if not len(table.names):
        return np.zeros(len(names), bool)
    if np.array_equal(table.names, names):
        rows = np.arange(len(names))
    else:
        known = {name: row for row, name in enumerate(table.names.tolist())}
        rows = np.array([known.get(name, -1) for name in names.tolist()])
    same = (rows >= 0) & (table.states[rows] == states).all(1)
    digests[same] = table.hashes[rows[same]]
    return same


def _read_table(file: Path) -> _Table:
    """What the cache holds of a tree: nothing if there is no such file, or if it is damaged."""
    try:
        with np.load(file) as arrays:
            table = _Table(*(arrays[name] for name in _Table._fields))
    except Exception:  # of a damaged file, zipfile and NumPy raise a dozen kinds
        return _NOTHING
    as_written = all(
        array.dtype.kind == pattern.dtype.kind and array.shape == (len(table.names), *pattern.shape[1:])
        for array, pattern in zip(table, _NOTHING, strict=True)
    )
    return table if as_written else _NOTHING


def _write_table(file: Path, table: _Table) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez(handle, **table._asdict())

    with contextlib.suppress(OSError):  # without a place to write, images are hashed every time
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_with(file, write)

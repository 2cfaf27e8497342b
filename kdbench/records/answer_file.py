"""A file of rows that are computed once and read many times, such as the answers of a teacher. Imports no torch."""

import mmap
import os
from pathlib import Path

import numpy as np

_WORD = 8  # bytes
_SALT = np.uint64(0x9E3779B97F4A7C15)


class AnswerFile:
    """Rows of numbers in a sparse file, filled in any order by any number of processes.

    Every row ends with a checksum of its content and its position, so a row is either whole or missing: after a kill or
    a power failure, on a damaged disk, while another process writes it. Writers of the same row must write the same
    content; then they need no lock. Rows are read through a memory map and written with `pwrite`, which reports a full
    disk as an error (a write to a memory map would kill the process).

    Args:
        path: of the file, which is created if there is none.
        rows: number of rows.
        width: numbers in a row.
        dtype: `float32` or `float16`.

    Raises:
        OSError: the file cannot be created or opened, or has another size.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str) -> None:
        self.path, self.rows, self.width, self.dtype = path, rows, width, np.dtype(dtype)
        self._words = _words(width, self.dtype)
        self._row_bytes = (self._words + 1) * _WORD
        self.size = self.size_of(rows, width, dtype)
        generator = np.random.default_rng(0)
        self._factors = generator.integers(2**64, size=self._words, dtype=np.uint64) | np.uint64(1)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            size = os.fstat(self._descriptor).st_size
            if size == 0:
                os.truncate(self._descriptor, self.size)
            elif size != self.size:
                raise OSError(f"{path} has {size} bytes instead of {self.size}")
            self._map = mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            os.close(self._descriptor)
            raise
        self._content = np.frombuffer(self._map, np.uint64).reshape(rows, self._words + 1)

    @staticmethod
    def size_of(rows: int, width: int, dtype: str) -> int:
        """Bytes of the whole file; on the disk it takes less until it is filled."""
        return rows * (_words(width, np.dtype(dtype)) + 1) * _WORD

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and whether they are there.

        Args:
            positions: (B,) int64, each in [0, rows).

        Returns:
            (B, width), of which the missing rows mean nothing; (B,) bool.
        """
        rows = self._content[positions]
        content, checksums = rows[:, :-1], rows[:, -1]
        values = content.copy().view(self.dtype)[:, : self.width]
        return values, checksums == self._checksums(content, positions)

    def write(self, positions: np.ndarray, values: np.ndarray) -> None:
        """Store rows.

        Args:
            positions: (B,) int64, each in [0, rows).
            values: (B, width), of the file's dtype.

        Raises:
            OSError: the disk is full, for one.
        """
        content = np.zeros((len(values), self._words), np.uint64)
        content.view(self.dtype)[:, : self.width] = values
        rows = np.concatenate([content, self._checksums(content, positions)[:, None]], axis=1)
        for position, row in zip(positions.tolist(), rows, strict=True):
            _write_all(self._descriptor, row.tobytes(), position * self._row_bytes)

    def everything(self) -> np.ndarray:
        """All rows, (rows, width); those that are missing mean nothing."""
        return self._content[:, :-1].copy().view(self.dtype)[:, : self.width]

    def filled(self, samples: int = 2000) -> float:
        """Estimated fraction of the rows that are there.

        Args:
            samples: number of rows to look at, spread evenly.
        """
        positions = np.unique(np.linspace(0, self.rows - 1, samples).astype(np.int64))
        return float(self.read(positions)[1].mean())

    def close(self) -> None:
        """Close the file; nothing can be read or written any more."""
        del self._content
        self._map.close()
        os.close(self._descriptor)

    def _checksums(self, content: np.ndarray, positions: np.ndarray) -> np.ndarray:
        # never 0, which is what a row that was never written has
        sums = (content * self._factors).sum(1, dtype=np.uint64)
        return (sums + (positions.astype(np.uint64) + np.uint64(1)) * _SALT) | np.uint64(1)


def _words(width: int, dtype: np.dtype) -> int:
    return -(-width * dtype.itemsize // _WORD)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written

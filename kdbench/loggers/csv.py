"""The CSV mirror: `metrics.csv` in the run's directory."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from kdbench.files import read_lines, write_text
from kdbench.loggers.mirror import RunInfo


class Csv:
    """`metrics.csv`, made anew from `metrics.jsonl` each time: after a resume it is whole."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        self._source, self._target = run.directory / "metrics.jsonl", run.directory / "metrics.csv"

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Take the numbers of a finished epoch."""
        self._rewrite()

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Take the final numbers and close."""
        self._rewrite()

    def _rewrite(self) -> None:
        rows = list(read_lines(self._source))
        columns = dict.fromkeys(["epoch", *(key for row in rows for key in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._target, text.getvalue())

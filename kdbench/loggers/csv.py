"""The CSV mirror: `metrics.csv` in the run's directory."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from kdbench.files import write_text
from kdbench.loggers.mirror import RunInfo
from kdbench.records.record import Record


class Csv:
    """`metrics.csv`, rewritten from `metrics.jsonl` every time, so that it is complete after a resume."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        self._record, self._target = Record(run.directory), run.directory / "metrics.csv"

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Rewrite the file after an epoch."""
        self._rewrite()

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Rewrite the file one last time; the summary is not part of it."""
        self._rewrite()

    def _rewrite(self) -> None:
        rows = self._record.epochs
        columns = dict.fromkeys(["epoch", *(key for row in rows for key in row)])
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._target, text.getvalue())

"""The list of runs, newest first. Imports neither torch nor pandas."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from kdbench.console import console, show
from kdbench.records.environment import code_version
from kdbench.records.record import Record, all_records
from kdbench.report.filters import Filter, select

_STYLES = {"failed": "red", "interrupted": "yellow", "running": "cyan"}
_NUMERIC = ("accuracy [%]", "seconds")


def list_runs(filters: list[str], outputs: Path) -> None:
    """Print the runs that match the filters.

    Raises:
        UserError: a text that is not a filter, or a key that no run has.
    """
    runs = select(all_records(outputs), [Filter.parse(text) for text in filters])
    dated = sorted(((last_update(run), run) for run in runs), key=lambda pair: pair[0], reverse=True)
    if dated:
        table = Table()
        for column in ("run", "id", "state", *_NUMERIC, "updated", "note"):
            table.add_column(
                column,
                justify="right" if column in _NUMERIC else "left",
                no_wrap=column in ("id", "updated"),
                overflow="fold",
            )
        for updated, run in dated:
            table.add_row(*_row(run, updated), style=_STYLES.get(run.state))
        show(table, 200)
    states = Counter(run.state for run in runs)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    versions = {code_version(run.result) for run in runs if run.result}
    if len(versions) > 1:
        console.print(f"the finished runs were made with {len(versions)} versions of kdbench's code")
    plural = "" if len(runs) == 1 else "s"
    console.print(f"{len(runs)} run{plural} in {outputs / 'runs'}" + (f": {counts}" if counts else ""))


def last_update(record: Record) -> datetime:
    """When the run's status last changed; without a status, when its directory did."""
    if updated := record.status.get("updated"):
        return datetime.fromisoformat(updated)
    return datetime.fromtimestamp(record.directory.stat().st_mtime, UTC)


def _row(record: Record, updated: datetime) -> list[str]:
    result = record.result or {}
    accuracy = f"{100 * result['test']['accuracy']:.2f}" if result else ""
    seconds = f"{result['cost']['train_seconds']:.0f}" if result else ""
    note = record.status.get("reason") or ("teacher" if result.get("role") == "teacher" else "")
    if record.state == "running":
        note = f"epoch {record.status.get('epoch', 0)}/{record.status.get('epochs', '?')}"
    local = updated.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return [record.name, record.id, record.state, accuracy, seconds, local, note]

"""The runs that there are, newest first. Imports neither torch nor pandas."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from kdbench.console import console, show
from kdbench.records.record import Record, all_records
from kdbench.report.filters import Filter, select

_STYLES = {"failed": "red", "interrupted": "yellow", "running": "cyan"}


def list_runs(filters: list[str], outputs: Path) -> None:
    """Print the runs that pass the filters.

    Raises:
        UserError: a word that is no filter, or a key that no run has.
    """
    found = select(all_records(outputs), [Filter.parse(text) for text in filters])
    when = {record.directory: touched(record) for record in found}
    found.sort(key=lambda record: when[record.directory], reverse=True)
    if found:
        table = Table()
        for column in ("run", "id", "state", "accuracy", "seconds", "when", "note"):
            number = column in ("accuracy", "seconds")
            table.add_column(
                column, no_wrap=column in ("id", "when"), overflow="fold", justify="right" if number else "left"
            )
        for record in found:
            table.add_row(*_row(record, when[record.directory]), style=_STYLES.get(record.state))
        show(table, 200)
    states = Counter(record.state for record in found)
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    console.print(f"{len(found)} runs in {outputs / 'runs'}" + (f": {said}" if said else ""))


def touched(record: Record) -> datetime:
    """When the run's status last changed; of its directory where there is no status."""
    if said := record.status.get("updated"):
        return datetime.fromisoformat(said)
    return datetime.fromtimestamp(record.directory.stat().st_mtime, UTC)


def _row(record: Record, when: datetime) -> list[str]:
    result = record.result or {}
    accuracy = f"{100 * result['test']['accuracy']:.2f}" if result else ""
    seconds = f"{result['cost']['train_seconds']:.0f}" if result else ""
    note = record.status.get("reason") or ("teacher" if result.get("role") == "teacher" else "")
    if record.state == "running":
        note = f"epoch {record.status.get('epoch', 0)}/{record.status.get('epochs', '?')}"
    local = when.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return [record.name, record.id, record.state, accuracy, seconds, local, note]

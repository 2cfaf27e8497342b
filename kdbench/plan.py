"""`kdbench plan`: the jobs of a sweep, what is done, and what the rest will take. Imports torch only to time."""

from pathlib import Path
from typing import Any

from rich.table import Table

from kdbench import grid
from kdbench.console import console, show
from kdbench.estimates import Estimate, Estimates
from kdbench.files import write_json
from kdbench.grid import Grid, Refused, Same, Task

_SHOWN = 20  # jobs at the beginning and at the end of a long list


def main(overrides: list[str], everything: bool, time_steps: bool, json_path: str | None) -> int:
    """Print the plan of a sweep; returns the exit code, 1 if a job is refused.

    Raises:
        UserError: the words mean no grid, or no job of it can be.
    """
    wanted = grid.read(overrides)
    estimates = Estimates()
    if time_steps:
        _time(wanted, estimates)
    rows = rows_of(wanted, estimates)
    _print(rows, everything)
    console.print(summary(rows))
    if json_path:
        write_json(Path(json_path), rows)
    return int(any(row["state"] == "refused" for row in rows))


def rows_of(wanted: Grid, estimates: Estimates) -> list[dict[str, Any]]:
    """A row for every missing teacher and every job.

    Returns:
        For each its label, words, state (`done`, `to do`, `running`, `failed`, `interrupted`, `same`, `refused`), name
        and directory of the run, a note, and the seconds and bytes still to be spent (None: unknown).
    """
    rows = []
    for job in (*wanted.teachers, *wanted.jobs):
        row: dict[str, Any] = {"label": job.label, "words": job.words, "run": "", "directory": None, "note": ""}
        rest = Estimate(0.0, 0.0)
        if isinstance(job, Refused):
            row |= {"state": "refused", "note": job.why}
        elif isinstance(job, Same):
            row |= {"state": "same", "note": f"the same run as {job.as_label}"}
        else:
            state = job.state
            row |= {"state": state, "run": job.run.name, "directory": str(job.run.directory), "note": _note(job, state)}
            rest = rest if state == "done" else estimates.of(job)
        rows.append({**row, "seconds": rest.seconds, "bytes": rest.size})
    return rows


def _note(task: Task, state: str) -> str:
    if task.waiting:
        return f"for {task.waiting} job{'s' if task.waiting > 1 else ''}"
    return str(task.record.status.get("reason") or "") if state == "failed" else ""


def summary(rows: list[dict[str, Any]]) -> str:
    """Jobs by state, time and disk of what is left."""
    states = [row["state"] for row in rows if row["label"].startswith("job")]
    said = {state: state for state in ("done", "to do", "interrupted")}
    said |= {"failed": "failed before", "running": "running elsewhere", "same": "the same as another"}
    counts = [
        f"{states.count(state)} {words}" for state, words in {**said, "refused": "refused"}.items() if state in states
    ]
    text = f"{len(states)} jobs: " + ", ".join(counts)
    if teachers := len(rows) - len(states):
        text += f"; {teachers} teacher{'s' if teachers > 1 else ''} to train first"
    left = [row for row in rows if row["state"] not in ("done", "same", "refused")]
    if not left:
        return text
    return f"{text}\nleft: {_total([row['seconds'] for row in left], span)} of training, one after another; " + (
        f"{_total([row['bytes'] for row in left], volume)} on disk"
    )


def _total(amounts: list[float | None], shown: Any) -> str:
    known = [amount for amount in amounts if amount is not None]
    unknown = len(amounts) - len(known)
    if not known:
        return "unknown"
    return shown(sum(known)) + (f" and {unknown} unknown" if unknown else "")


def span(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def volume(size: float) -> str:
    """Bytes as a person says them."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _print(rows: list[dict[str, Any]], everything: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "state", "run", "time", "words that differ"):
        table.add_column(column, no_wrap=column in ("", "state"), overflow="fold")
    common = set.intersection(*(set(row["words"]) for row in rows))
    for number, row in enumerate(rows):
        if not everything and len(rows) > 2 * _SHOWN + 1 and _SHOWN <= number < len(rows) - _SHOWN:
            if number == _SHOWN:
                table.add_row("...", f"{len(rows) - 2 * _SHOWN} more", "", "", "(--all shows them)")
            continue
        time = "" if row["state"] in ("done", "same", "refused") else "?"
        time = span(row["seconds"]) if time and row["seconds"] is not None else time
        own = " ".join(word for word in row["words"] if word not in common)
        words = row["note"] if row["label"].startswith("teacher") else f"{own}  {row['note']}".strip()
        table.add_row(row["label"], row["state"], row["run"], time, words)
    show(table)


def _time(wanted: Grid, estimates: Estimates) -> None:
    """Time some real steps of each kind of run of which none is finished."""
    from kdbench.bench import measure_pace

    for task in (*wanted.teachers, *wanted.tasks):
        if task.state != "done" and estimates.of(task).seconds is None:
            estimates.learn(task, measure_pace(task.cfg))

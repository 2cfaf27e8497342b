"""The plan of a sweep: its jobs, what is done, and what the rest will take."""

from typing import Any

from rich.table import Table

from kdbench.console import show
from kdbench.sweeps.estimates import Estimate, Estimates
from kdbench.sweeps.grid import Grid, Refused, Same, Task
from kdbench.sweeps.groups import all_groups
from kdbench.sweeps.kept_answers import KeptAnswers, Logits

_SHOWN = 20  # jobs at the beginning and at the end of a long list


def rows_of(grid: Grid, estimates: Estimates) -> list[dict[str, Any]]:
    """A row for every missing teacher and every job.

    Returns:
        For each its label, overrides, state (`done`, `to do`, `running`, `failed`, `interrupted`, `same`, `refused`),
        name and directory of the run, a note, the seconds and bytes still to be spent (None: unknown), and the logits
        of its teacher that are kept, as `Logits` (None: done, or none are kept).
    """
    rows, kept = [], KeptAnswers()
    groups = all_groups([job for job in grid.tasks if job.state != "done"])
    together = {id(job): [other.label for other in group if other is not job] for group in groups for job in group}
    for job in (*grid.teachers, *grid.jobs):
        row: dict[str, Any] = {"label": job.label, "overrides": job.overrides, "run": "", "directory": None, "note": ""}
        rest, answers = Estimate(0.0, 0.0), None
        if isinstance(job, Refused):
            row |= {"state": "refused", "note": job.why}
        elif isinstance(job, Same):
            row |= {"state": "same", "note": f"the same run as {job.as_label}"}
        else:
            state = job.state
            row |= {"state": state, "run": job.spec.name, "directory": str(job.spec.directory)}
            row["note"] = _note(job, state, together.get(id(job), []))
            if state != "done":
                rest, answers = estimates.of(job), kept.of(job.spec)
        rows.append({**row, "seconds": rest.seconds, "bytes": rest.size, "answers": answers and answers._asdict()})
    return rows


def _note(task: Task, state: str, together: list[str]) -> str:
    if task.waiting:
        return f"for {task.waiting} job{'s' if task.waiting > 1 else ''}"
    reason = str(task.record.status.get("reason") or "") if state == "failed" else ""
    numbers = ", ".join(label.removeprefix("job ").partition("/")[0] for label in together)
    return "; ".join(part for part in (reason, f"together with {numbers}" if numbers else "") if part)


def summary(rows: list[dict[str, Any]]) -> str:
    """The number of jobs by state, the time and disk space still to be spent, and what the teachers' answers take."""
    states = [row["state"] for row in rows if row["label"].startswith("job")]
    labels = {state: state for state in ("done", "to do", "interrupted")}
    labels |= {"failed": "failed before", "running": "running elsewhere", "same": "the same as another"}
    labels |= {"refused": "refused"}
    counts = [f"{states.count(state)} {label}" for state, label in labels.items() if state in states]
    text = f"{len(states)} jobs: " + ", ".join(counts)
    if teachers := len(rows) - len(states):
        text += f"; {teachers} teacher{'s' if teachers > 1 else ''} to train first"
    left = [row for row in rows if row["state"] not in ("done", "same", "refused")]
    if not left:
        return text
    text += f"\nleft: {_total([row['seconds'] for row in left], span)} of training, one after another; "
    text += f"{_total([row['bytes'] for row in left], volume)} on disk"
    answers = {row["answers"]["key"]: Logits(**row["answers"]) for row in left if row.get("answers")}
    return text + (f"\n{_of_answers(list(answers.values()))}" if answers else "")


def _of_answers(answers: list[Logits]) -> str:
    """What different teachers' logits take, and what they save."""
    size = sum(logits.size for logits in answers)
    there = sum(logits.there * logits.size for logits in answers) / size
    return (
        f"teachers' answers: up to {volume(size)} of logits in {answers[0].folder} ({100 * there:.0f} % of those to "
        "all training and validation images are there); runs whose methods read no stage maps do not compute them again"
    )


def _total(amounts: list[float | None], shown: Any) -> str:
    known = [amount for amount in amounts if amount is not None]
    unknown = len(amounts) - len(known)
    if not known:
        return "unknown"
    return shown(sum(known)) + (f" and {unknown} unknown" if unknown else "")


def span(seconds: float) -> str:
    """Seconds in a readable unit: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def volume(size: float) -> str:
    """Bytes in a readable unit: `1.2 MB`, `2.5 GB`."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def show_plan(rows: list[dict[str, Any]], everything: bool) -> None:
    """Print the rows as a table: all of them if `everything`, else the beginning and the end of a long list."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "state", "run", "time", "overrides that differ"):
        table.add_column(column, no_wrap=column in ("", "state"), overflow="fold")
    common = set.intersection(*(set(row["overrides"]) for row in rows))
    for number, row in enumerate(rows):
        if not everything and len(rows) > 2 * _SHOWN + 1 and _SHOWN <= number < len(rows) - _SHOWN:
            if number == _SHOWN:
                table.add_row("...", f"{len(rows) - 2 * _SHOWN} more", "", "", "(--all shows them)")
            continue
        time = "" if row["state"] in ("done", "same", "refused") else "?"
        time = span(row["seconds"]) if time and row["seconds"] is not None else time
        differing = " ".join(override for override in row["overrides"] if override not in common)
        last = row["note"] if row["label"].startswith("teacher") else f"{differing}  {row['note']}".strip()
        table.add_row(row["label"], row["state"], row["run"], time, last)
    show(table)

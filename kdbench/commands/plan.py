"""`kdbench plan`: the jobs of a sweep, what is done, and what the rest will take. Imports torch only to time."""

import argparse
from pathlib import Path

from kdbench.console import console
from kdbench.files import write_json
from kdbench.sweeps import grid
from kdbench.sweeps.estimates import Estimates
from kdbench.sweeps.grid import Grid
from kdbench.sweeps.plan import rows_of, show_plan, summary

HELP = "list the jobs of a sweep: done, to do, failed; time, disk, teachers"
TAKES_PLUGINS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sweep."""
    parser.add_argument("overrides", nargs="*", help="as for kdbench-train -m, e.g. method=ce,kd seed=0,1,2")
    parser.add_argument("-m", "--multirun", action="store_true",
                        help="accepted and ignored, so that a kdbench-train command can be pasted")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="show all jobs of a long list")
    parser.add_argument("--time", action="store_true", help="time some steps where no finished run says how long")
    parser.add_argument("--json", help="also write the rows to this file")


def run(args: argparse.Namespace) -> int:
    """Print the plan of a sweep; returns 1 if a job is refused."""
    planned = grid.read(args.overrides)
    estimates = Estimates()
    if args.time:
        _time(planned, estimates)
    rows = rows_of(planned, estimates)
    show_plan(rows, args.all)
    console.print(summary(rows))
    if args.json:
        write_json(Path(args.json), rows)
    return int(any(row["state"] == "refused" for row in rows))


def _time(planned: Grid, estimates: Estimates) -> None:
    """Time some real steps of each kind of run of which none is finished."""
    from kdbench.speed.epochs import seconds_per_epoch

    for task in (*planned.teachers, *planned.tasks):
        if task.state != "done" and estimates.of(task).seconds is None:
            estimates.learn(task, seconds_per_epoch(task.spec))

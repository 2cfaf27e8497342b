"""What kdbench does on the GPU of this machine: correctness, speed, and a short training on CIFAR-100, in limited time.

    python scripts/gpu_report.py [--minutes 25] [--parts correctness,timings] [--out FOLDER] [overrides of every run]
    python scripts/gpu_report.py --smoke      # every part in the tiniest form on the CPU, to test this script

Each part is a process of its own with a share of the time, so that no part can break another or take its time. The
table comes last. The folder has a log of each part, and `report.json`, which is written anew after every part.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# Asks NVML whether there is a GPU. Asking CUDA would keep the processes of the parts, which are forked, from using it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from gpu_parts.cifar100 import Training
from gpu_parts.correctness import correctness, machine, tests
from gpu_parts.parts import Part, Plan, Row, rows_of
from gpu_parts.timings import processes, timings
from rich.table import Table

from kdbench.console import console, show
from kdbench.files import write_json
from kdbench.training import signals

# In this order. What else is to be measured, such as a cache of the teacher's outputs or students that are trained
# together, becomes a function from a plan to tasks, and a line here with its share of the time.
PARTS = {
    "machine": Part(0.1, machine),
    "correctness": Part(0.12, correctness),
    "tests": Part(0.10, tests),
    "timings": Part(0.35, timings),
    "processes": Part(0.12, processes),
    "cifar100": Part(1.0, lambda plan: Training(plan).tasks()),
}


def table_of(rows: Sequence[Row], smoke: bool) -> Table:
    """The table."""
    title = "SMOKE FORM ON THE CPU: tests this script, and says nothing about a GPU" if smoke else "kdbench on a GPU"
    table = Table(title=title, title_justify="left")
    for column in ("part", "task", "state", "result", "s"):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for row in rows:
        table.add_row(row.part, row.task, row.state, row.text, f"{row.seconds:.0f}")
    return table


def arguments() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of every run, as for kdbench-train, e.g. dataset.root=PATH")
    parser.add_argument("--minutes", type=float, default=25.0, help="at most (default 25)")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_report"), help="folder (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="every part in the tiniest form, on the CPU")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Do all parts, write the JSON file, print the table; the exit code is 1 if anything is not as it should be."""
    signals.listen()
    parser = arguments()
    args = parser.parse_args(words)
    plan = Plan(args.smoke, args.out.resolve(), tuple(args.overrides))
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts {args.parts}: {sorted(unknown)[0]} must be one of {', '.join(PARTS)}")
    rows, end = list[Row](), time.monotonic() + 60 * args.minutes
    for name in dict.fromkeys(["machine", *parts]):
        seconds = min(end - time.monotonic() - 5, 60 * args.minutes * PARTS[name].share)
        console.print(f"{name}: at most {max(seconds, 0):.0f} s")
        new = (
            rows_of(name, PARTS[name], plan, seconds) if seconds > 5 else [Row(name, "all", "skipped", "no time left")]
        )
        rows += new
        write_json(plan.out / "report.json", {"smoke": args.smoke, "rows": [asdict(row) for row in rows]})
        if name == "machine" and new[0].state != "done":
            break
    show(table_of(rows, args.smoke), width=200)
    console.print(f"report: {plan.out / 'report.json'}")
    return int(any(row.state in ("wrong", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())

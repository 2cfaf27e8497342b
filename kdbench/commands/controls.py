"""`kdbench controls`: a method against what it must beat."""

import argparse
import statistics
from pathlib import Path

from rich.table import Table

from kdbench.console import console, show
from kdbench.errors import UserError
from kdbench.files import write_json

HELP = "run a method and what it must beat, and say whether it does"
TAKES_PLUGINS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and the seeds."""
    parser.add_argument("overrides", nargs="*", help="as for kdbench-train, e.g. method=skd dataset=mnist5k")
    parser.add_argument("--seeds", default="0,1,2", help="of the students (default 0,1,2)")
    parser.add_argument("--json", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Conduct method and controls for every seed, and print the table."""
    if not all(seed.isdecimal() for seed in args.seeds.split(",")):
        raise UserError(f"--seeds {args.seeds} is not allowed: whole numbers >= 0, as 0,1,2")
    from kdbench.sweeps.controls import run_controls  # here, because it needs scipy

    seeds = [int(seed) for seed in args.seeds.split(",")]
    compared = run_controls(args.overrides, seeds)
    table = Table(title=f"{' '.join(args.overrides)}: test accuracy in %, mean ± std of {len(seeds)} seeds")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column(f"{compared.method} is better by", justify="right")
    table.add_column(f"does {compared.method} beat it?")
    table.add_row(compared.method, _spread(compared.accuracies), "", "")
    for row in compared.controls:
        gain = f"{row.gain:+.2f}" + ("" if row.half_width is None else f" ± {row.half_width:.2f}")
        table.add_row(row.name, _spread(row.accuracies), gain, row.verdict)
    show(table)
    console.print("differences are paired by seed, with 95 % t intervals; an interval that contains 0 resolves nothing")
    if args.json:
        write_json(Path(args.json), {**compared._asdict(), "controls": [row._asdict() for row in compared.controls]})
    return 0


def _spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean

"""`kdbench runs`: what has been run, newest first."""

import argparse
from pathlib import Path

from kdbench.records.record import default_outputs
from kdbench.report.listing import list_runs

HELP = "list the runs, newest first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs."""
    parser.add_argument("filters", nargs="*", metavar="KEY=VALUE,...", help="method=kd noise.rate=0.4 state=failed")
    parser.add_argument("--outputs", type=Path, help="root of the records (default as for kdbench-train)")


def run(args: argparse.Namespace) -> int:
    """Print the runs that pass the filters."""
    list_runs(args.filters, args.outputs or default_outputs())
    return 0

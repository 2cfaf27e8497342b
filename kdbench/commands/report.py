"""`kdbench report`: compare the finished runs."""

import argparse
from pathlib import Path

from kdbench.records.record import default_outputs

HELP = "compare the finished runs: tables, tests, plots"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, how they are compared, and what is written."""
    parser.add_argument("filters", nargs="*", metavar="KEY=VALUE,...", help="method=kd,at dataset=cifar100")
    parser.add_argument("--outputs", type=Path, help="root of the records (default as for kdbench-train)")
    parser.add_argument("--by", type=_listed, default=["method"], help="keys that make rows (default method)")
    parser.add_argument("--over", type=_listed, default=["seed"], help="keys that are averaged over (default seed)")
    parser.add_argument("--strict", action="store_true", help="refuse if runs differ in a key nobody named")
    parser.add_argument("--metric", dest="metrics", type=_listed, default=["test/accuracy"], metavar="METRIC[,METRIC]",
                        help="default test/accuracy")  # fmt: skip
    parser.add_argument("--baseline", default="ce", help="method that the others are compared with (default ce)")
    parser.add_argument("--interval", choices=("t", "bca"), default="t", help="Student's t or bootstrap (default t)")
    parser.add_argument("--test", choices=("t", "wilcoxon"), default="t", help="of the pairs (default t)")
    for form in ("html", "csv", "markdown", "latex"):
        parser.add_argument(f"--{form}", metavar="FILE", help=f"also as {form} in this file; - = on the terminal")
    parser.add_argument("--plots", metavar="FOLDER", help="also the plots of the page, as svg files in this folder")


def run(args: argparse.Namespace) -> int:
    """Make the report, print it, and write the files that were asked for."""
    from kdbench.report.compare import Options, report

    report(Options(**{key: getattr(args, key) for key in Options._fields}), args.outputs or default_outputs())
    return 0


def _listed(text: str) -> list[str]:
    return text.split(",")

"""`kdbench evaluate`: more measures of finished runs, into the `evaluation.json` of each."""

import argparse
import logging
from pathlib import Path
from typing import Any

from rich.table import Table

from kdbench.console import show, show_messages
from kdbench.errors import UserError
from kdbench.records.environment import versions
from kdbench.records.record import Record, default_outputs
from kdbench.records.writer import RecordWriter

log = logging.getLogger("kdbench")
HELP = "measure more of finished runs: attacks, corrupted images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and what to measure."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or its id")
    parser.add_argument("--attacks", action="store_true", help="FGSM and PGD-20 on student and teacher")
    parser.add_argument("--images", type=int, help="attack only the first so many test images (default all)")
    parser.add_argument("--corruptions", metavar="FOLDER", help="folder of CIFAR-10-C or CIFAR-100-C, or its like")


def run(args: argparse.Namespace) -> int:
    """Evaluate the runs, write their `evaluation.json`, and print the figures."""
    if args.images is not None and args.images < 1:
        raise UserError(f"--images {args.images} is not allowed: it must be > 0")
    show_messages()
    from kdbench.training.evaluate import chosen_runs, evaluate

    folder = None if args.corruptions is None else Path(args.corruptions)
    for record in chosen_runs(args.runs, default_outputs()):
        measures = evaluate(record, args.attacks, args.images, folder)
        RecordWriter(record.directory).add_evaluation({**measures, "versions": versions()})
        show(_table(record, measures))
        log.info("record: %s", record.directory / "evaluation.json")
    return 0


def _table(record: Record, measures: dict[str, Any]) -> Table:
    table = Table(title=record.directory.name, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for part, values in measures.items():
        for key, value in (values or {}).items():
            if isinstance(value, int | float):
                table.add_row(f"{part}/{key}", f"{value:.4f}" if isinstance(value, float) else str(value))
        if part == "corruptions" and values["summary"]:
            table.add_row("corruptions/accuracy", f"{values['summary']['accuracy']:.4f}")
    return table

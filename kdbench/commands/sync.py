"""`kdbench sync`: send the W&B runs that were recorded offline."""

import argparse

from kdbench.loggers.wandb_sync import sync
from kdbench.records.record import default_outputs

HELP = "send the W&B runs that were recorded offline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to send them."""
    parser.add_argument("--project", help="W&B project instead of the runs' own")
    parser.add_argument("--entity", help="W&B user or team instead of the runs' own")
    parser.add_argument("--dry-run", action="store_true", help="only list them")


def run(args: argparse.Namespace) -> int:
    """Send what was not sent, and say what could not be."""
    return sync(default_outputs(), args.project, args.entity, args.dry_run)

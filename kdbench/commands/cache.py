"""`kdbench cache`: a teacher's answers to all training images, computed before the runs that read them."""

import argparse
import shlex
import signal
import sys

from kdbench.specs.resolve import spec_of
from kdbench.training.fill_cache import fill

HELP = "compute a teacher's answers to all views of the training images in advance"
TAKES_PLUGINS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run whose teacher answers."""
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE",
                        help="of a run that reads them, as for kdbench-train: method=kd teacher=...")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train the teacher if need be and fill the files; returns 130 after Ctrl-C."""
    try:
        fill(spec_of(args.overrides))
    except KeyboardInterrupt:
        folder = ["--config-dir", args.config_dir] if args.config_dir else []
        command = shlex.join(["kdbench", "cache", *args.overrides, *folder])
        print(f"interrupted; the same command continues: {command}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0

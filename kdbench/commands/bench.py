"""`kdbench bench`: a real training epoch against a bare loop, or methods' steps against each other."""

import argparse
import json
import os
from pathlib import Path

from rich.table import Table

from kdbench.config.overrides import from_overrides
from kdbench.console import console, show
from kdbench.files import write_json

HELP = "compare the real training epoch with a bare loop, or the steps of methods"
TAKES_PLUGINS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and how long to measure."""
    parser.add_argument("overrides", nargs="*", help="as for kdbench-train, e.g. method=kd dataset=fake")
    parser.add_argument("--rounds", type=int, default=5, help="timed pairs of epoch and loop (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="steps in an epoch, at most (default 20)")
    parser.add_argument("--methods", help="compare the steps of these methods with the first's instead: kd,rkd,bss")
    parser.add_argument("--json", help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, and write JSON if asked."""
    return _compare_methods(args) if args.methods else _compare_epoch(args)


def _compare_epoch(args: argparse.Namespace) -> int:
    config = from_overrides(args.overrides)
    from kdbench.speed.epochs import measure

    figures = measure(config, args.rounds, args.steps)
    table = Table(title=f"{' '.join(args.overrides)}: median of {args.rounds} rounds in turn, {figures['steps']} steps "
                  f"of {figures['batch_size']} images, {figures['environment']['threads']} threads")  # fmt: skip
    for column in ("", "images/s", "ms/step"):
        table.add_column(column, justify="right" if column else "left")
    for name, key in (("bare loop", "bare"), ("real epoch", "epoch")):
        milliseconds = 1e3 * figures["batch_size"] / figures[f"{key}_images_per_second"]
        table.add_row(name, f"{figures[f'{key}_images_per_second']:.1f}", f"{milliseconds:.1f}")
    show(table)
    mebibytes = figures["peak_memory_bytes"] / 2**20
    console.print(f"ratio {figures['ratio']:.3f} (median of the rounds' ratios), peak memory {mebibytes:.0f} MiB")
    console.print(json.dumps({key: figures[key] for key in ("ratio", "epoch_images_per_second")}))
    if args.json:
        write_json(Path(args.json), figures)
    return 0


def _compare_methods(args: argparse.Namespace) -> int:
    # The profiler that counts memory is talkative; both variables are read when torch is imported.
    os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    from kdbench.records.environment import environment
    from kdbench.speed.steps import compare

    rows = compare(args.overrides, args.methods.split(","), args.rounds, args.steps)
    table = Table(title=f"{' '.join(args.overrides)}: median of {args.rounds} rounds in turn, {args.steps} steps each")
    against = f"of {rows[0]['name']}"
    for column in ("method", "extra parameters", "ms/step", against, "peak MiB", against):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row["name"], f"{row['extra_parameters']:,}", f"{row['milliseconds']:.1f}", f"{row['time_ratio']:.2f}",
            f"{row['peak_memory_bytes'] / 2**20:.0f}", f"{row['memory_ratio']:.2f}",
        )  # fmt: skip
    show(table)
    if args.json:
        write_json(Path(args.json), {"rows": rows, "environment": environment()})
    return 0

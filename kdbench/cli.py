"""The command `kdbench`. Imports torch only where a sub-command needs it."""

import argparse
import os
import re
import sys
from pathlib import Path

from rich.table import Table

from kdbench import config
from kdbench.console import show
from kdbench.errors import RunFailed, UserError
from kdbench.models.catalogue import NETWORKS
from kdbench.records import default_outputs

_PLURALS = {
    "methods": "method", "teachers": "teacher", "students": "student", "datasets": "dataset", "recipes": "recipe",
    "experiments": "experiment", "noises": "noise", "imbalances": "imbalance", "loggers": "logger",
}  # fmt: skip


def rows(group: str) -> list[tuple[str, str, str, str, str]]:
    """Name, what it is, paper, year and needs of every option of a group.

    They come from the first comment line of the option's file, `# what; paper, year; needs`; those of networks
    from the catalogue.
    """
    if group in ("student", "teacher"):
        found = [(name, entry.note, entry.paper, str(entry.year), "") for name, entry in NETWORKS.items()]
        own = [("self", "the student's own kind", "Furlanello et al., Born-Again Neural Networks", "2018", "")]
        found += own if group == "teacher" else []
        return [*found, ("timm", f"any timm model: {group}.name=resnet34", "Wightman, timm", "", "")]
    found = []
    for name in config.options(group):
        what, paper, needs = ([*config.description(f"{group}/{name}").split(";"), "", ""])[:3]
        year = re.search(r",?\s*\b((?:19|20)\d\d)$", paper.strip())
        paper = paper.strip()[: -len(year[0])] if year else paper.strip()
        found.append((name, what.strip(), paper, year[1] if year else "", needs.strip()))
    return found


def ls(args: argparse.Namespace) -> int:
    """Print the options of a group."""
    table = Table(title=f"{args.what} ({_PLURALS[args.what]}=NAME)", title_justify="left")
    columns = ("name", "what", "paper", "year", "needs")
    content = rows(_PLURALS[args.what])
    shown = [i for i, column in enumerate(columns) if i == 0 or any(row[i] for row in content)]
    for i in shown:
        table.add_column(columns[i], no_wrap=i == 0)
    for row in content:
        table.add_row(*(row[i] for i in shown))
    show(table)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Look at the machine."""
    from kdbench import doctor

    return doctor.main()


def bench(args: argparse.Namespace) -> int:
    """Time a configuration against a bare loop, or methods against each other."""
    if args.methods:
        # the profiler that counts memory is talkative; both are read when torch is imported
        os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        from kdbench import costs

        return costs.main(args.overrides, args.methods.split(","), args.rounds, args.steps, args.json)
    from kdbench import bench

    return bench.main(args.overrides, rounds=args.rounds, steps=args.steps, json_path=args.json)


def controls(args: argparse.Namespace) -> int:
    """Run a method against its controls."""
    from kdbench import controls

    if not all(seed.isdecimal() for seed in args.seeds.split(",")):
        raise UserError(f"--seeds {args.seeds} is not allowed: whole numbers >= 0, as 0,1,2")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    return controls.main(args.overrides, seeds, args.json)


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate finished runs."""
    from kdbench import evaluate

    return evaluate.main(args.runs, default_outputs(), args.attacks, args.images, args.corruptions)


def sync(args: argparse.Namespace) -> int:
    """Send offline W&B runs."""
    from kdbench import sync

    return sync.main(default_outputs(), args.project, args.entity, args.dry_run)


def runs(args: argparse.Namespace) -> int:
    """List the runs."""
    from kdbench.report import listing

    return listing.main(args.filters, args.outputs or default_outputs())


def report(args: argparse.Namespace) -> int:
    """Compare the finished runs."""
    from kdbench.report import command

    chosen = {key: value for key, value in vars(args).items() if key in command.Options._fields}
    return command.main(command.Options(**chosen), args.outputs or default_outputs())


def _words(text: str) -> list[str]:
    return text.split(",")


def plan(args: argparse.Namespace) -> int:
    """List the jobs of a sweep."""
    from kdbench import plan

    return plan.main(args.overrides, args.all, args.time, args.json)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="kdbench", description="Look around kdbench; kdbench-train runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("ls", help="list the options of a group")
    command.add_argument("what", choices=_PLURALS, help=", ".join(_PLURALS), metavar="WHAT")
    command.set_defaults(run=ls)
    command = commands.add_parser("doctor", help="check device, data, disk space, W&B and versions")
    command.set_defaults(run=doctor)
    command = commands.add_parser("bench", help="compare the real training epoch with a bare loop")
    command.add_argument("overrides", nargs="*", help="as for kdbench-train, e.g. method=kd dataset=fake")
    command.add_argument("--rounds", type=int, default=5, help="timed pairs of epoch and loop (default 5)")
    command.add_argument("--steps", type=int, default=20, help="steps in an epoch, at most (default 20)")
    command.add_argument("--methods", help="compare the steps of these methods with the first's instead: kd,rkd,bss")
    command.add_argument("--json", help="also write the figures to this file")
    command.set_defaults(run=bench)
    command = commands.add_parser("controls", help="run a method and what it must beat, and say whether it does")
    command.add_argument("overrides", nargs="*", help="as for kdbench-train, e.g. method=skd dataset=mnist5k")
    command.add_argument("--seeds", default="0,1,2", help="of the students (default 0,1,2)")
    command.add_argument("--json", help="also write the figures to this file")
    command.set_defaults(run=controls)
    command = commands.add_parser("evaluate", help="measure more of finished runs: attacks, corrupted images")
    command.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or its id")
    command.add_argument("--attacks", action="store_true", help="FGSM and PGD-20 on student and teacher")
    command.add_argument("--images", type=int, help="attack only so many test images (default all)")
    command.add_argument("--corruptions", metavar="FOLDER", help="folder of CIFAR-10-C or CIFAR-100-C, or its like")
    command.set_defaults(run=evaluate)
    command = commands.add_parser("sync", help="send the W&B runs that were recorded offline")
    command.add_argument("--project", help="W&B project instead of the runs' own")
    command.add_argument("--entity", help="W&B user or team instead of the runs' own")
    command.add_argument("--dry-run", action="store_true", help="only list them")
    command.set_defaults(run=sync)
    command = commands.add_parser("runs", help="list the runs, newest first")
    command.add_argument("filters", nargs="*", metavar="KEY=VALUE,...", help="method=kd noise.rate=0.4 state=failed")
    command.add_argument("--outputs", type=Path, help="root of the records (default as for kdbench-train)")
    command.set_defaults(run=runs)
    command = commands.add_parser("report", help="compare the finished runs: tables, tests, plots")
    command.add_argument("filters", nargs="*", metavar="KEY=VALUE,...", help="method=kd,at dataset=cifar100")
    command.add_argument("--outputs", type=Path, help="root of the records (default as for kdbench-train)")
    command.add_argument("--by", type=_words, default=["method"], help="keys that make rows (default method)")
    command.add_argument("--over", type=_words, default=["seed"], help="keys that are averaged over (default seed)")
    command.add_argument("--strict", action="store_true", help="refuse if runs differ in a key nobody named")
    command.add_argument("--metric", dest="metrics", type=_words, default=["test/accuracy"], metavar="METRIC[,METRIC]",
                         help="default test/accuracy")  # fmt: skip
    command.add_argument("--baseline", default="ce", help="method that the others are held against (default ce)")
    command.add_argument("--interval", choices=("t", "bca"), default="t", help="Student's t or bootstrap (default t)")
    command.add_argument("--test", choices=("t", "wilcoxon"), default="t", help="of the pairs (default t)")
    for form in ("html", "csv", "markdown", "latex"):
        command.add_argument(f"--{form}", metavar="FILE", help=f"also as {form} in this file; - = on the terminal")
    command.add_argument("--plots", metavar="FOLDER", help="also the plots of the page, as svg files in this folder")
    command.set_defaults(run=report)
    command = commands.add_parser("plan", help="list the jobs of a sweep: done, to do, failed; time, disk, teachers")
    command.add_argument("overrides", nargs="*", help="as for kdbench-train -m, e.g. method=ce,kd seed=0,1,2")
    command.add_argument("-m", "--multirun", action="store_true", help="taken, so that a command can be pasted")
    command.add_argument("--all", action="store_true", help="show all jobs of a long list")
    command.add_argument("--time", action="store_true", help="time some steps of what no finished run can tell")
    command.add_argument("--json", help="also write the rows to this file")
    command.set_defaults(run=plan)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return code


if __name__ == "__main__":
    sys.exit(main())

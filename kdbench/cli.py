"""The command `kdbench`: a verb for each module of `kdbench.commands`. Imports torch only where a verb needs it."""

import argparse
import sys

from kdbench import __version__
from kdbench.commands import bench, cache, check, controls, doctor, evaluate, ls, new, plan, report, runs, sync
from kdbench.config import plugins
from kdbench.errors import RunFailed, UserError

_VERBS = (ls, doctor, plan, cache, runs, report, evaluate, controls, bench, check, new, sync)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="kdbench", description="Look around kdbench; kdbench-train runs.")
    parser.add_argument("--version", action="version", version=f"kdbench {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in _VERBS:
        one = verbs.add_parser(verb.__name__.rpartition(".")[2], help=verb.HELP)
        verb.add_arguments(one)
        if getattr(verb, "TAKES_PLUGINS", False):
            one.add_argument("--config-dir", help="a folder with options of your own, as for kdbench-train")
        one.set_defaults(run=verb.run)
    args = parser.parse_args(argv)
    try:
        folder = getattr(args, "config_dir", None)
        plugins.add_from([*(["--config-dir", folder] if folder else []), *getattr(args, "overrides", [])])
        code: int = args.run(args)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return code


if __name__ == "__main__":
    sys.exit(main())

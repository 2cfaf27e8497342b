"""`kdbench ls`: the options of a group, from the headers of `conf/`."""

import argparse
from typing import Any

from rich.table import Table

from kdbench.config.groups import content, header, is_outside, options
from kdbench.config.networks import NETWORKS
from kdbench.console import show
from kdbench.errors import UserError

HELP = "list the options of a group"
TAKES_PLUGINS = True
PLURALS = {
    "methods": "method", "teachers": "teacher", "students": "student", "datasets": "dataset", "recipes": "recipe",
    "experiments": "experiment", "noises": "noise", "imbalances": "imbalance", "loggers": "logger",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The group."""
    parser.add_argument("group", choices=PLURALS, help=", ".join(PLURALS), metavar="GROUP")


def run(args: argparse.Namespace) -> int:
    """Print the options of a group."""
    table = Table(title=f"{args.group} ({PLURALS[args.group]}=NAME)", title_justify="left")
    columns = ("name", "what", "paper", "year", "needs")
    content = rows(PLURALS[args.group])
    shown = [i for i, column in enumerate(columns) if i == 0 or any(row[i] for row in content)]
    for i in shown:
        table.add_column(columns[i], no_wrap=i == 0)
    for row in content:
        table.add_row(*(row[i] for i in shown))
    show(table)
    return 0


def rows(group: str) -> list[tuple[str, str, str, str, str]]:
    """Name, what it is, paper, year and needs of every option of a group."""
    own = group in ("student", "teacher")  # their other options are in the table of networks
    headers = {name: _header(f"{group}/{name}") for name in options(group) if not own or is_outside(f"{group}/{name}")}
    listed = [(name, head["what"], head["paper"], head["year"], head["needs"]) for name, head in headers.items()]
    if own:
        networks = [(name, entry.note, entry.paper, str(entry.year), "") for name, entry in NETWORKS.items()]
        own_kind = ("self", "the student's own kind", "Furlanello et al., Born-Again Neural Networks", "2018", "")
        networks += [own_kind] if group == "teacher" else []
        networks += [("timm", f"any timm model: {group}.name=resnet34", "Wightman, timm", "", "")]
        return [*networks, *listed]
    return listed


def _header(option: str) -> dict[str, Any]:
    """The header of an option; of one that cannot be used, why not in place of what it is."""
    try:
        content(option)
    except UserError as error:
        return {**header(option), "what": f"CANNOT BE USED: {error}"}
    return header(option)

"""`kdbench new`: a small plugin that works, to be changed into one's own method, network or data set."""

import argparse
import datetime
import os
import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template

import yaml

from kdbench.config import plugins
from kdbench.config.groups import CONF, options
from kdbench.config.groups import GROUPS as ALL_GROUPS
from kdbench.config.networks import NETWORKS
from kdbench.console import console
from kdbench.errors import UserError

HELP = "write a small plugin: a method, a network or a data set"
# kind -> the group of its option
GROUPS = {"method": "method", "network": "student", "dataset": "dataset"}
_TEMPLATES = Path(__file__).parent / "templates"
_SMALL = "recipe=quick dataset=digits"
# The two commands to begin with, after the plugin has been named; PYTEST stands for running its test.
_COMMANDS = {
    "method": (
        "kdbench check method={name}",
        f"kdbench-train method={{name}} teacher=resnet20 student=resnet8 {_SMALL}",
    ),
    "network": ("PYTEST", f"kdbench-train method=kd teacher=resnet20 student={{name}} {_SMALL}"),
    "dataset": ("PYTEST", "kdbench-train method=kd teacher=resnet20 student=resnet8 recipe=quick dataset={name}"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to make, and where."""
    parser.add_argument("kind", choices=GROUPS, help=", ".join(GROUPS), metavar="KIND")
    parser.add_argument("name", metavar="NAME", help="of the option: lower-case letters, digits and _")
    parser.add_argument("--in", dest="folder", metavar="FOLDER", help="the plugin, new or not (default ./NAME)")


def run(args: argparse.Namespace) -> int:
    """Write the files, and print them and what to do next."""
    kind, name, folder = args.kind, args.name, Path(args.folder or args.name).expanduser()
    _check_name(kind, name)
    _check_folder(folder)
    if (folder / "conf").is_dir():
        plugins.add(str(folder))
    _check_free(kind, name)
    module = f"{name}_{kind}"
    package = _package(folder)
    files = _files(kind, name, ".".join([*package, module]), folder)
    _check_absent(module, folder, files)
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        console.print(f"wrote {file}")
    console.print("next:")
    for command in _commands(kind, name, str(folder), folder.absolute().parents[len(package) - 1] if package else None):
        console.print(f"  {command}")
    return 0


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or iskeyword(name):
        raise UserError(
            f"{name} is not possible as a name: it must be at most 40 lower-case letters, digits and _, begin with a "
            "letter, and be no word of Python"
        )
    if yaml.safe_load(name) != name:
        raise UserError(f"{name} is not possible as a name: in YAML it is {yaml.safe_load(name)}")


def _check_folder(folder: Path) -> None:
    if folder.resolve() == CONF.resolve().parent or folder.resolve() == CONF.resolve():
        raise UserError(f"--in {folder} is kdbench itself: name a folder of your own")
    if not (folder / "conf").is_dir() and any(any((folder / group).glob("*.yaml")) for group in ALL_GROUPS):
        raise UserError(
            f"--in {folder} is not possible: it is a tree of options itself; name a folder with conf/ in it"
        )
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--in {folder} is not possible: {above} is not a folder that can be written to")


def _check_free(kind: str, name: str) -> None:
    """Refuse a name that an option has, of kdbench or of a plugin."""
    group = GROUPS[kind]
    taken = [*options(group), *options("teacher"), *NETWORKS, "timm", "custom"] if kind == "network" else options(group)
    if name in taken:
        raise UserError(f"{group}={name} is taken: choose another name")


def _check_absent(module: str, folder: Path, files: Mapping[Path, str]) -> None:
    if there := next((file for file in files if os.path.lexists(file)), None):
        raise UserError(f"{there} is there already: nothing was written")
    if not _package(folder) and find_spec(module):
        raise UserError(f"there is a module {module} already: choose another name; nothing was written")


def _package(folder: Path) -> list[str]:
    """The names of the package that a folder is, from the outermost on; none where it is no package."""
    folder = folder.absolute()
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return names


def _files(kind: str, name: str, module: str, folder: Path) -> dict[Path, str]:
    """The content of each file that is to be written."""
    here = _commands(kind, name, ".", Path("/".join([".."] * (module.count(".")))) if "." in module else None)
    values = {
        "kind": kind,
        "name": name,
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("_")) + "Method",
        "year": str(datetime.date.today().year),
        "first_here": here[0],
        "second_here": here[1],
    }
    own = {
        folder / f"{module.rpartition('.')[2]}.py": f"{kind}/module.py.txt",
        folder / "conf" / GROUPS[kind] / f"{name}.yaml": f"{kind}/option.yaml.txt",
        folder / "tests" / f"test_{module.rpartition('.')[2]}.py": f"{kind}/test.py.txt",
    }
    shared = {folder / "README.md": "README.md.txt", folder / "conftest.py": "conftest.py.txt"}
    sources = own | {file: template for file, template in shared.items() if not file.exists()}
    return {file: Template((_TEMPLATES / source).read_text()).substitute(values) for file, source in sources.items()}


def _commands(kind: str, name: str, folder: str, path: Path | None) -> list[str]:
    """The two commands to begin with.

    Args:
        kind: what was made.
        name: of it.
        folder: the plugin, as seen from where the commands are typed.
        path: what must be on Python's path beside it; None where nothing must.
    """
    prefix = f"KDBENCH_PLUGINS={shlex.quote(folder)} " + (f"PYTHONPATH={shlex.quote(str(path))} " if path else "")
    test = f"python -m pytest {shlex.quote(str(Path(folder) / 'tests' / f'test_{name}_{kind}.py'))}"
    return [test if command == "PYTEST" else prefix + command.format(name=name) for command in _COMMANDS[kind]]

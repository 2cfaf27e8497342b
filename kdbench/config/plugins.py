"""Plugins: folders and packages outside of kdbench that bring a `conf/` tree and Python modules. Imports none of them.

They are named by the environment variable `KDBENCH_PLUGINS`, a list separated by commas, or found through the
entry-point group `kdbench.plugins` of installed packages. A folder that holds `conf/` is put on Python's path, too. A
folder that is itself a `conf/` tree will do where Python finds the modules anyway. Processes that a run starts inherit
the variable.
"""

import os
import re
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from kdbench.errors import UserError

VARIABLE = "KDBENCH_PLUGINS"
_ENTRY_POINTS = "kdbench.plugins"


def conf_folders() -> list[Path]:
    """The `conf/` trees of all plugins, in the order in which they were named.

    Raises:
        UserError: a plugin cannot be found, or brings no options.
    """
    named = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    return list(_conf_folders(named))


def add_from(arguments: list[str]) -> None:
    """Take folders that a command line gives to Hydra, by `--config-dir` or `hydra.searchpath`, for plugins, too."""
    for number, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd") and number + 1 < len(arguments):
            add(arguments[number + 1])
        elif argument.startswith("--config-dir="):
            add(argument.partition("=")[2])
        elif argument.startswith("hydra.searchpath="):
            for entry in re.findall(r"(?:file|pkg)://[^,\]'\"]+", argument):
                scheme, _, place = entry.partition("://")
                add(place if scheme == "file" else place.partition(".")[0])


def add(plugin: str) -> None:
    """Name one more plugin, for this process and those that it starts."""
    plugin = str(Path(plugin).expanduser().absolute()) if Path(plugin).expanduser().is_dir() else plugin
    named = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    if plugin not in named:
        os.environ[VARIABLE] = ",".join([*named, plugin])


@lru_cache
def _conf_folders(named: tuple[str, ...]) -> tuple[Path, ...]:
    installed = tuple(point.value.partition(":")[0] for point in entry_points(group=_ENTRY_POINTS))
    return tuple(dict.fromkeys(_conf_folder(name) for name in (*installed, *named)))


def _conf_folder(plugin: str) -> Path:
    folder = Path(plugin).expanduser()
    if folder.is_dir():
        return _of_folder(folder.absolute())
    spec = find_spec(plugin) if plugin.isidentifier() else None
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (Path(place) / "conf").is_dir():
            return Path(place) / "conf"
    if places:
        raise UserError(f"{VARIABLE}: the package {plugin} has no folder conf/")
    raise UserError(f"{VARIABLE} or --config-dir: {plugin} is neither a folder nor a package that is installed")


def _of_folder(folder: Path) -> Path:
    conf = folder / "conf"
    if not conf.is_dir():
        if not any(folder.glob("*/*.yaml")):
            raise UserError(f"{VARIABLE}: {folder} has no folder conf/ and no options")
        return folder
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}" if path else str(folder)
    return conf

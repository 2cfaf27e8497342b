"""What `conf/` and the plugins hold, read as files: the options of each group, their content and their headers."""

import copy
import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kdbench.config import plugins
from kdbench.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# A wheel carries conf/ inside the package; in a checkout it is beside the package.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
GROUPS = "method plus teacher student dataset noise imbalance recipe trainer logger experiment debug".split()
# Keys of a method's file that tell the runner about the method; all others are arguments of its class.
METHOD_DECLARATIONS = ("name", "_target_", "needs", "dependencies")
# Labels that may repeat in a header are lists, the others single lines of text.
_LABELS = {"paper": "", "year": "", "needs": "", "plus": "", "control": [], "command": [], "smoke": "", "published": "",
           "hardware": "", "claims": ""}  # fmt: skip


def roots() -> tuple[Path, ...]:
    """`conf/`, then those of the plugins.

    Raises:
        UserError: as `plugins.conf_folders`; or a plugin has an option of a name that is taken.
    """
    return _roots(CONF, tuple(plugins.conf_folders()))


@lru_cache
def _roots(conf: Path, outside: tuple[Path, ...]) -> tuple[Path, ...]:
    taken = {file.relative_to(conf): file for file in conf.rglob("*.yaml")}
    for root in outside:
        for file in root.rglob("*.yaml"):
            other = taken.setdefault(file.relative_to(root), file)
            if other != file:
                raise UserError(f"{file} has the name of another option, {other}: rename it")
    return (conf, *outside)


def file_of(option: str) -> Path | None:
    """The file of an option, such as `method/kd`; None where there is none."""
    return next((file for root in roots() if (file := root / f"{option}.yaml").is_file()), None)


def is_outside(option: str) -> bool:
    """Whether an option comes from a plugin."""
    file = file_of(option)
    return file is not None and not file.is_relative_to(CONF)


def options(group: str) -> list[str]:
    """Names of the options of a group, folders included, sorted; a leading underscore marks a shared part."""
    return sorted(
        str(file.relative_to(root / group).with_suffix(""))
        for root in roots()
        for file in (root / group).rglob("*.yaml")
        if not file.stem.startswith("_")
    )


def content(option: str) -> dict[str, Any]:
    """What one file of `conf/` says, merged with the files of its group that it builds on; nothing is interpolated.

    Args:
        option: path below `conf/` without the ending, such as `method/kd`.
    """
    return copy.deepcopy(_content(option, text_of(option)))


def text_of(option: str) -> str:
    """The text of the file of an option.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    file = file_of(option)
    if file is None:
        group, _, name = option.rpartition("/")
        near = difflib.get_close_matches(name, options(group), n=3) if group else []
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UserError(f"there is no option {option}: no {option}.yaml in conf/ or a plugin{hint}")
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


@lru_cache
def _content(option: str, text: str) -> dict[str, Any]:
    group = option.rpartition("/")[0]
    try:
        own: dict[str, Any] = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        line = getattr(error, "problem_mark", None)
        place = f"{file_of(option)}:{line.line + 1}" if line else str(file_of(option))
        raise UserError(f"{place} is not valid YAML: {getattr(error, 'problem', error)}") from error
    parents = [parent for parent in own.pop("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= content(f"{group}/{parent.rpartition('/')[2].partition('@')[0]}")
    return merged | own


def header(option: str) -> dict[str, Any]:
    """The comment at the head of a file of `conf/`.

    The first line says what the option is. Labelled lines follow: `# paper:`, `# year:`, `# needs:`; for methods
    `# plus:` (why the method cannot be added to another) and `# control:` (`what it controls for: overrides`); for
    presets `# command:`, `# smoke:`, `# hardware:` and `# claims:`. A line that is indented continues the one above.

    Returns:
        `what`, and every label: text, or a list of lines for `control` and `command`; empty where the file has none.

    Raises:
        UserError: a label nobody knows.
    """
    labels: dict[str, Any] = {"what": "", **copy.deepcopy(_LABELS)}
    label = ""
    for line in text_of(option).splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if not text or text.startswith("@package"):
            continue
        if not labels["what"]:
            labels["what"] = text
        elif line.startswith("#   ") and label:
            _add(labels, label, text)
        elif match := re.match(r"([a-z]+): +(.+)", text):
            label = match[1]
            if label not in _LABELS:
                raise UserError(f"{file_of(option)}: unknown label {label!r}; known: {', '.join(_LABELS)}")
            _add(labels, label, match[2])
        else:
            label = ""  # a remark for the reader of the file
    return labels


def _add(labels: dict[str, Any], label: str, text: str) -> None:
    if isinstance(labels[label], list):
        labels[label].append(text)
    else:
        labels[label] = f"{labels[label]} {text}".strip()


def method_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `method` group: the arguments of its class, without what the file declares about it."""
    return {key: value for key, value in method.items() if key not in METHOD_DECLARATIONS}


def addable_methods() -> list[str]:
    """Methods whose loss can be added to another's with `plus`: all whose header does not say why not."""
    return [name for name in options("method") if not header(f"method/{name}")["plus"]]

"""What an option of a plugin must have and may have, by what kdbench's own options of its group have."""

from collections.abc import Mapping
from typing import Any

from kdbench.config.groups import METHOD_DECLARATIONS, content, file_of, is_outside, options
from kdbench.config.rules import Rule, leaves, nearest, rules_of
from kdbench.errors import UserError

# Groups whose options write into other groups only.
WITHOUT_NODE = ("experiment", "debug")


def rules_of_plugin(option: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Rules that kdbench's own options have for keys of a plugin's option that has none for them."""
    group = option.partition("/")[0]
    if group in ("method", *WITHOUT_NODE) or not is_outside(option):
        return {}
    missing = {}
    for own in _own_options(group):
        for key, rule in rules_of(own).items():
            if f"{group}.{key}" not in rules and not rule.fixed:
                missing[f"{group}.{key}"] = rule
    return missing


def check_complete(option: str) -> None:
    """Refuse an option of a plugin that lacks what the runner reads, or has a key that the runner would ignore.

    Args:
        option: such as `recipe/mine`; kdbench's own options pass.

    Raises:
        UserError: see above.
    """
    group, _, name = option.partition("/")
    if group in WITHOUT_NODE or not is_outside(option):
        return
    file, node = file_of(option), content(option)
    if group == "method":
        for key in METHOD_DECLARATIONS[:3]:
            if key not in node:
                raise UserError(f"{file} lacks {key}, which every method declares")
        if node["name"] != name:
            raise UserError(f"{file}: name is {node['name']}, but must be {name}, as the file is called")
        return
    own = [set(rules_of(each)) for each in _own_options(group)]
    for key, _ in leaves(node):
        if not any(key in keys or key.partition(".")[0] in keys for keys in own):
            known = set.union(*own)
            raise UserError(f"{file}: unknown key {group}.{key}: nothing reads it{nearest(key, known)}")
    lacking = [key for key in set.intersection(*own) if _absent(node, key)]
    if lacking:
        raise UserError(f"{file} lacks {min(lacking)}: name one of {group}'s options in its defaults to build on it")


def _own_options(group: str) -> list[str]:
    """Kdbench's own options of a group, which say what keys it has."""
    if group in ("student", "teacher"):
        return [f"{group}/_base"]
    return [f"{group}/{name}" for name in options(group) if not is_outside(f"{group}/{name}")]


def _absent(node: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return True
        node = node[part]
    return False


def is_argument(key: str, plain: Mapping[str, Any]) -> bool:
    """Whether a key without a rule is an argument of a plugin's method, as its file says."""
    group, _, name = key.partition(".")
    method = plain["method"]["name"] if group == "method" else ""
    if group == "plus":
        method, _, name = name.partition(".")
    return bool(method) and is_outside(f"method/{method}") and not _absent(content(f"method/{method}"), name)

"""The rules that `conf/` gives for its keys: the comment behind a key is `# <rule>: <meaning>`.

A rule is `type [constraint] [or null]` with type `int float bool str list dict` and constraint `> x`, `>= x` or
`in [a, b)`; or an enumeration `a|b|c`; or `fixed`, for a key that nothing but its file may set.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdbench.config.groups import content, file_of, is_outside, options, roots, text_of
from kdbench.errors import UserError


class Rule(NamedTuple):
    """What one key may be, as its comment in `conf/` says."""

    text: str
    types: tuple[type, ...]
    choices: tuple[str, ...]
    low: float
    high: float
    low_open: bool
    high_open: bool
    null: bool
    fixed: bool = False

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule such as `float in [0, 1)`, `int > 0 or null`, `sgd|adamw`.

        Raises:
            ValueError: the text is not a rule.
        """
        body, null = re.subn(r"\s+or null$", "", text.strip())
        low, high, low_open, high_open = -math.inf, math.inf, False, False
        if text.strip() == "fixed":
            return cls(text, (), (), low, high, low_open, high_open, False, fixed=True)
        if re.fullmatch(r"[\w.-]+(\|[\w.-]+)+", body):
            return cls(text, (str,), tuple(body.split("|")), low, high, low_open, high_open, bool(null))
        match = re.fullmatch(r"(int|float|bool|str|list|dict)(?:\s+(.*))?", body)
        if not match:
            raise ValueError(f"not a rule: {text!r}")
        types = {
            "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "list": (list,), "dict": (dict,),
        }[match[1]]  # fmt: skip
        if constraint := match[2]:
            if bound := re.fullmatch(r"(>=?)\s*([-\d.e]+)", constraint):
                low, low_open = float(bound[2]), bound[1] == ">"
            elif bounds := re.fullmatch(r"in ([\[(])([-\d.e]+),\s*([-\d.e]+)([\])])", constraint):
                low, high = float(bounds[2]), float(bounds[3])
                low_open, high_open = bounds[1] == "(", bounds[4] == ")"
            else:
                raise ValueError(f"not a rule: {text!r}")
        return cls(text, types, (), low, high, low_open, high_open, bool(null))

    def refusal(self, value: Any) -> str | None:
        """Why `value` is not allowed (`must be ...`), or None if it is allowed."""
        if self.fixed:
            return None  # compared with the file by `kdbench.config.check`
        if value is None:
            return None if self.null else f"must be {self.text}"
        if self.choices:
            if str(value) in self.choices:
                return None
            return f"must be one of {', '.join(self.choices)}" + nearest(str(value), self.choices)
        fits = isinstance(value, self.types) and not (isinstance(value, bool) and bool not in self.types)
        if fits and isinstance(value, int | float) and not isinstance(value, bool):
            above = value > self.low if self.low_open else value >= self.low
            below = value < self.high if self.high_open else value <= self.high
            fits = above and below and math.isfinite(value)
        return None if fits else f"must be {self.text}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; nearest: a, b`, or nothing if no known word is near."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(matches)}" if matches else ""


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a nested mapping; lists and empty mappings count as values."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rules_of(option: str) -> dict[str, Rule]:
    """The rules of one option (`method/kd`; `train` for the root) and of the options it builds on.

    Returns:
        Dotted key within the group -> rule; empty where there is no such file. Keys of a plugin's file may lack rules.

    Raises:
        UserError: a comment that is not a rule.
        ValueError: a key of kdbench's own files without a rule.
    """
    group, _, name = option.rpartition("/")
    if group in ("student", "teacher") and name != "_base" and not is_outside(option):
        return rules_of(f"{group}/_base")
    return dict(_rules_of(option, text_of(option))) if file_of(option) else {}


@lru_cache
def _rules_of(option: str, text: str) -> dict[str, Rule]:
    group = option.rpartition("/")[0]
    rules: dict[str, Rule] = {}
    for parent in (yaml.safe_load(text) or {}).get("defaults", []):
        if group and isinstance(parent, str) and parent != "_self_":
            rules |= rules_of(f"{group}/{parent.partition('@')[0]}")  # recipe/nav200 takes crd240@recipe
    path: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"(\s*)(\w+):", line)
        if not match:
            continue
        path = [(depth, key) for depth, key in path if depth < len(match[1])] + [(len(match[1]), match[2])]
        if comment := re.search(r"\s#\s(.+?):\s", line):
            try:
                rules[".".join(key for _, key in path)] = Rule.parse(comment[1])
            except ValueError as error:
                raise UserError(f"{file_of(option)}:{number}: the comment of {match[2]} is {error}") from error
    presets = "@package _global_" in text  # they set keys whose rules are in the keys' own files
    if group and not presets and not is_outside(option):
        for key, _ in leaves(content(option)):
            if key not in rules and key.partition(".")[0] not in rules:
                raise ValueError(f"conf/{option}.yaml: {key} has no rule: a comment `# <rule>: <meaning>` behind it")
    return rules


def rules_of_choices(chosen: tuple[str, ...]) -> dict[str, Rule]:
    """The rules of a whole configuration: of the root, of the chosen options, and of every method that `plus` may add.

    Args:
        chosen: the options, such as `method/kd`.
    """
    return _rules_of_choices(chosen, roots())


@lru_cache
def _rules_of_choices(chosen: tuple[str, ...], _roots: tuple[Path, ...]) -> dict[str, Rule]:
    rules = rules_of("train")
    for option in chosen:
        rules |= {f"{option.partition('/')[0]}.{key}": rule for key, rule in rules_of(option).items()}
    for method in options("method"):
        rules |= {f"plus.{method}.{key}": rule for key, rule in rules_of(f"method/{method}").items()}
    return rules

"""The language in which `conf/` says what a key may be.

A rule is `type [constraint] [or null]` with type `int float bool str list dict` and constraint `> x`, `>= x` or
`in [a, b)`; or an enumeration `a|b|c`.
"""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple


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

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule such as `float in [0, 1)`, `int > 0 or null`, `sgd|adamw`.

        Raises:
            ValueError: the text is not a rule.
        """
        body, null = re.subn(r"\s+or null$", "", text.strip())
        low, high, low_open, high_open = -math.inf, math.inf, False, False
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
        """Why `value` is not allowed, or None if it is."""
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
    found = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else ""

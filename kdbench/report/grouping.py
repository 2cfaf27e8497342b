"""Which runs make a row: settings that differ are told apart, never averaged unseen.

A contender is what is compared (a method with its options), a setting is what it is compared on (data, networks,
noise, imbalance, recipe, teacher). A key that differs between the runs and follows from no other key splits the rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from kdbench.config.rules import nearest
from kdbench.errors import UserError
from kdbench.report.collect import ANY, is_fact

# asked first, so that a person reads noise=symmetric0.4 and not noise.rate=0.4; what they settle is not asked again
WORDS = ["dataset", "student", "noise", "imbalance", "method", "teacher", "teacher.condition"]
_LAST = ["teacher.id"]


class Grouping(NamedTuple):
    """How runs become rows.

    Attributes:
        contender: keys of what is compared.
        setting: keys of what it is compared on.
        over: keys that are averaged over.
        split: those of the keys that nobody named.
    """

    contender: list[str]
    setting: list[str]
    over: list[str]
    split: list[str]

    @property
    def keys(self) -> list[str]:
        """All keys of a row."""
        return self.contender + self.setting


def on_method(key: str) -> bool:
    """Whether a key tells contenders apart, not settings."""
    return key.split(".")[0] in ("method", "plus")


def on_teacher(key: str) -> bool:
    """Whether a key has a meaning only where there is a teacher."""
    return key.split(".")[0] == "teacher"


def grouping(frame: pd.DataFrame, by: list[str], over: list[str], strict: bool = False) -> Grouping:
    """The keys that make rows: those named, and all others that differ between the runs.

    Args:
        frame: of runs, from `collect`.
        by: keys that the user names for rows.
        over: keys that are averaged over.
        strict: refuse instead of splitting.

    Raises:
        UserError: a key that the runs do not have, or that is named twice; with `strict`, keys nobody named differ.
    """
    known = [column for column in frame.columns if is_fact(column)]
    for key in (*by, *over):
        if key not in known:
            raise UserError(f"{key} is no key of these runs{nearest(key, known)}")
    if both := set(by) & set(over):
        raise UserError(f"{min(both)} is in --by and in --over; a key makes rows or is averaged over")
    words = [key for key in WORDS if key in known]
    rest = sorted(key for key in known if key not in (*words, *_LAST, *over))
    chosen = by if any(on_method(key) for key in by) else [*by, "method"]
    named = len(chosen) - (chosen is not by and frame["method"].nunique() > 1)
    chosen = list(chosen)
    for key in [*words, *rest, *_LAST]:
        if key not in (*chosen, *over) and _differs(frame, key, chosen):
            chosen.append(key)
    split = chosen[named:]
    if split and strict:
        raise UserError(f"the runs differ in {', '.join(split)}: name them in --by, or choose with {split[0]}=...")
    contender = [key for key in chosen if on_method(key)]
    return Grouping(contender, [key for key in chosen if not on_method(key)], over, split)


def _differs(frame: pd.DataFrame, key: str, chosen: list[str]) -> bool:
    """Whether a key has several values that do not follow from the chosen keys.

    What contenders are compared on may not follow from the contender: methods that were run on different data are no
    comparison. An option of a method may follow from either, and nothing about teachers from a run without one.
    """
    known = frame[frame[key] != ANY]
    allowed = [
        each for each in chosen
        if on_method(key) or (not on_method(each) and (on_teacher(key) or not on_teacher(each)))
    ]  # fmt: skip
    groups = known.groupby(allowed, sort=False)[key] if allowed else [(None, known[key])]
    return any(values.nunique() > 1 for _, values in groups)


def agrees(left: Iterable[object], right: Iterable[object]) -> bool:
    """Whether two settings can be one: equal, or without meaning for one of them, key by key."""
    return all(a == b or ANY in (a, b) for a, b in zip(left, right, strict=True))


def match_keys(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Keys in which the runs of a pair agree: of data, student, recipe (always), of teachers (where both have one)."""
    facts = [column for column in frame.columns if is_fact(column) and not on_method(column)]
    return [key for key in facts if not on_teacher(key)], [key for key in facts if on_teacher(key)]


def without_teachers(frame: pd.DataFrame, over: list[str]) -> pd.DataFrame:
    """Leave out runs that only made a teacher.

    One that says role=teacher stays if other runs have its setting: it is the student alone of that setting, which
    somebody's teacher happened to be trained as.
    """
    always, _ = match_keys(frame)
    settings = list(frame[[key for key in always if key not in over]].itertuples(index=False, name=None))
    students = {setting for setting, role in zip(settings, frame["role"], strict=True) if role != "teacher"}
    return frame[[setting in students for setting in settings]]

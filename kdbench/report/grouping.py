"""Which runs form a row of a table: runs that differ in a setting are separated, never averaged silently.

A contender is what is compared (a method with its options); a setting is what contenders are compared on (data,
networks, noise, imbalance, recipe, teacher). A key that differs between runs, and does not follow from other keys,
splits the rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from kdbench.config.rules import nearest
from kdbench.errors import UserError
from kdbench.report.collect import ANY, is_fact

# tried first, so that a table says noise=symmetric0.4 and not noise.rate=0.4; keys that follow from them split nothing
READABLE_KEYS = ["dataset", "student", "noise", "imbalance", "method", "teacher", "teacher.condition"]
_LAST_KEYS = ["teacher.id"]


class Grouping(NamedTuple):
    """How runs become rows.

    Attributes:
        contender: keys of what is compared.
        setting: keys of what it is compared on.
        over: keys that are averaged over.
        split: those keys of a row that the user did not name.
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
    """Whether a key belongs to the contender, not to the setting."""
    return key.removeprefix("code.").split(".")[0] in ("method", "plus")


def on_teacher(key: str) -> bool:
    """Whether a key only applies to runs with a teacher."""
    return key.split(".")[0] == "teacher"


def grouping(frame: pd.DataFrame, by: list[str], over: list[str], strict: bool = False) -> Grouping:
    """The keys that define rows: those named, and all others in which the runs differ.

    Args:
        frame: runs, from `collect`.
        by: keys that the user names for rows.
        over: keys that are averaged over.
        strict: refuse instead of splitting by keys that the user did not name.

    Raises:
        UserError: a key that the runs do not have, or that is in `by` and `over`; with `strict`, the runs differ in a
            key that is in neither.
    """
    known = [column for column in frame.columns if is_fact(column)]
    for key in (*by, *over):
        if key not in known:
            raise UserError(f"{key} is not a key of these runs{nearest(key, known)}")
    if both := set(by) & set(over):
        raise UserError(f"{min(both)} is in both --by and --over: a key either defines rows or is averaged over")
    keys, split = list(by), []
    if not any(on_method(key) for key in by):  # methods are never averaged
        keys.append("method")
        split += ["method"] if frame["method"].nunique() > 1 else []
    readable = [key for key in READABLE_KEYS if key in known]
    others = sorted(key for key in known if key not in (*readable, *_LAST_KEYS))
    for key in [*readable, *others, *_LAST_KEYS]:
        if key not in (*keys, *over) and _differs(frame, key, keys):
            keys.append(key)
            split.append(key)
    if split and strict:
        them = "it" if len(split) == 1 else "them"
        raise UserError(f"the runs differ in {', '.join(split)}: name {them} in --by, or filter with {split[0]}=...")
    contender = [key for key in keys if on_method(key)]
    setting = [key for key in keys if not on_method(key)]
    return Grouping(contender, setting, over, split)


def _differs(frame: pd.DataFrame, key: str, keys: list[str]) -> bool:
    """Whether a key has several values among runs that agree in `keys`.

    Not all of `keys` are considered. A key of the setting must not follow from the contender, because methods that were
    run on different data are not comparable. An option of a method may follow from contender or setting. A key of the
    data must not follow from the teacher, which some runs do not have.
    """
    applicable = frame[frame[key] != ANY]
    considered = [
        other for other in keys
        if on_method(key) or (not on_method(other) and (on_teacher(key) or not on_teacher(other)))
    ]  # fmt: skip
    groups = applicable.groupby(considered, sort=False)[key] if considered else [(None, applicable[key])]
    return any(values.nunique() > 1 for _, values in groups)


def agrees(left: Iterable[object], right: Iterable[object]) -> bool:
    """Whether two lists of values can describe one setting: each pair is equal, or one of it does not apply."""
    return all(a == b or ANY in (a, b) for a, b in zip(left, right, strict=True))


def match_keys(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Keys in which paired runs agree.

    Returns:
        (keys of data, student and recipe, which always agree; keys of the teacher, which agree if both runs have one).
    """
    facts = [column for column in frame.columns if is_fact(column) and not on_method(column)]
    return [key for key in facts if not on_teacher(key)], [key for key in facts if on_teacher(key)]


def without_teachers(frame: pd.DataFrame, over: list[str]) -> pd.DataFrame:
    """Leave out runs that only trained a teacher.

    A run with role=teacher stays if other runs have its setting: it is then also the student alone of that setting.
    """
    always, _ = match_keys(frame)
    settings = list(frame[[key for key in always if key not in over]].itertuples(index=False, name=None))
    students = {setting for setting, role in zip(settings, frame["role"], strict=True) if role != "teacher"}
    return frame[[setting in students for setting in settings]]

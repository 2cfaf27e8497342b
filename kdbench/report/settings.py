"""The settings of a summary, and which contender has which value in each of them."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kdbench.report.collect import ANY, NULL
from kdbench.report.grouping import Grouping, agrees

Setting = tuple[Any, ...]


def contender_of(row: dict[str, Any], grouping: Grouping) -> str:
    """Readable name of what a row compares: `kd`, `kd, method.temperature=2`."""
    parts = [row[key] if key == "method" else f"{key}={row[key]}" for key in grouping.contender if row[key] != NULL]
    return ", ".join(str(part) for part in parts)


def settings_of(summary: pd.DataFrame, keys: list[str]) -> list[Setting]:
    """The settings, by these keys, in order of appearance.

    A setting to which some keys do not apply is left out if it agrees with a more specific one.
    """
    settings = list(dict.fromkeys(tuple(row[key] for key in keys) for row in summary.to_dict("records")))
    return [
        setting for setting in settings
        if not any(agrees(setting, other) and other.count(ANY) < setting.count(ANY) for other in settings)
    ]  # fmt: skip


def cells(summary: pd.DataFrame, keys: list[str]) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Every (setting by these keys, row); a row without a teacher belongs to the settings of all teachers."""
    settings = settings_of(summary, keys)
    for row in summary.to_dict("records"):
        values = [row[key] for key in keys]
        for setting in settings:
            if agrees(values, setting):
                yield setting, row


def matrix(summary: pd.DataFrame, grouping: Grouping, column: str) -> pd.DataFrame:
    """A column of the summary as (settings, contenders); nan where a contender was not run in a setting."""
    settings = settings_of(summary, grouping.setting)
    by_contender: dict[str, dict[int, Any]] = {}
    for setting, row in cells(summary, grouping.setting):
        by_contender.setdefault(contender_of(row, grouping), {})[settings.index(setting)] = row[column]
    return pd.DataFrame(by_contender, index=range(len(settings)))

"""Pairing runs with runs of the baseline."""

from typing import Any

import pandas as pd

from kdbench.errors import UserError
from kdbench.report.grouping import agrees, match_keys


class BaselineRuns:
    """The baseline's runs, found by the run that they are paired with.

    Paired runs agree in data, student, recipe and seed, and in the teacher if both have one.
    """

    def __init__(self, pool: pd.DataFrame, method: str, metric: str) -> None:
        """Index the runs of the baseline.

        Args:
            pool: all runs, from `collect`.
            method: the baseline.
            metric: name of the metric; runs without it are ignored.
        """
        self._method, self._metric = method, metric
        self._always, self._teacher = match_keys(pool)
        self._runs: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
        runs = pool[pool["method"] == method]
        if metric in runs:
            for run in runs[runs[metric].notna()].to_dict("records"):
                self._runs.setdefault(tuple(run[key] for key in self._always), []).append(run)

    def value_beside(self, run: dict[str, Any]) -> float | None:
        """The metric of the baseline's run that is paired with `run`; None if there is no such run.

        Raises:
            UserError: several runs of the baseline could be paired with it.
        """
        teacher = [run[key] for key in self._teacher]
        candidates = self._runs.get(tuple(run[key] for key in self._always), [])
        partners = [other for other in candidates if agrees(teacher, [other[key] for key in self._teacher])]
        if len(partners) > 1:
            first, second = partners[:2]
            raise UserError(
                f"--baseline {self._method} is ambiguous: {first['name']} is {first['id']} and {second['id']}; "
                "choose between them with a filter on method.* or teacher.*"
            )
        return float(partners[0][self._metric]) if partners else None

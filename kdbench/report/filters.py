"""Filters of `kdbench runs` and `kdbench report`, such as `method=kd noise.rate=0.2,0.4 state=failed`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from kdbench.config.rules import leaves, nearest
from kdbench.errors import UserError
from kdbench.records.identity import method_word, needs_teacher, noise_word
from kdbench.records.record import Record

# keys of a record itself; every other key is one of its configuration
_RECORD_KEYS = ("state", "role", "id", "name")
# a group may stand for its name: `student=resnet8`
_GROUPS = {group: f"{group}.name" for group in ("method", "student", "teacher", "dataset", "noise", "imbalance")}


class Filter(NamedTuple):
    """One condition: the run's `key` has one of `values`."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read `key=value[,value]`.

        Raises:
            UserError: the text does not have this form.
        """
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise UserError(f"{text} is not allowed: filters are key=value[,value], such as method=kd or state=failed")
        return cls(key, tuple(values.split(",")))

    def selects_contenders(self) -> bool:
        """Whether it chooses among methods and teachers, not among the data they are compared on."""
        return self.key.split(".")[0] in ("method", "plus", "teacher")

    def applies_to(self, record: Record) -> bool:
        """False for a key of teachers if the run has none, and for an option that the run's method does not have."""
        group, _, option = self.key.partition(".")
        if group == "teacher":
            return not record.config or needs_teacher(record.config)
        return group != "method" or not option or bool(values_of(record, self.key))

    def matches(self, record: Record) -> bool:
        """Whether the run fulfils the condition."""
        return any(_equal(value, text) for value in values_of(record, self.key) for text in self.values)


def values_of(record: Record, key: str) -> list[Any]:
    """Values of a run for a key: several where a filter may name it in several ways, none where the run lacks it."""
    if key in ("state", "id", "name"):
        return [getattr(record, key)]
    if key == "role":
        return [(record.result or {}).get("role")]
    cfg = record.config
    if not cfg:
        return []
    if key == "method":  # method=at matches at and at+kd, method=at+kd only the latter
        return [cfg["method"]["name"], method_word(cfg)]
    if key == "plus":
        return ["+".join(sorted(cfg["plus"])) or "none"]
    if key == "noise":
        return [cfg["noise"]["name"], noise_word(cfg["noise"])]
    clean = cfg["noise"]["name"] == "none" and cfg["imbalance"]["name"] == "none"
    if key == "teacher.condition" and clean:
        return ["same", "clean"]  # both conditions are the same run
    node: Any = cfg
    for part in _GROUPS.get(key, key).split("."):
        if not isinstance(node, dict) or part not in node:
            return []
        node = node[part]
    return [node]


def _equal(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value] == text.lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def check_keys(records: list[Record], filters: list[Filter]) -> None:
    """Refuse a filter that cannot match any run.

    Raises:
        UserError: a key that no run has.
    """
    for condition in filters:
        key = condition.key
        if records and key not in _RECORD_KEYS and not any(values_of(record, key) for record in records):
            known = {leaf for record in records for leaf, _ in leaves(record.config)} | set(_RECORD_KEYS) | set(_GROUPS)
            raise UserError(f"{key}={','.join(condition.values)}: no run has {key}{nearest(key, known)}")


def select(records: Iterable[Record], filters: list[Filter]) -> list[Record]:
    """The runs that match all filters.

    Raises:
        UserError: a key that no run has.
    """
    candidates = list(records)
    check_keys(candidates, filters)
    return [record for record in candidates if all(condition.matches(record) for condition in filters)]

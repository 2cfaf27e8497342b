"""Which runs `kdbench runs` and `kdbench report` mean: words as `method=kd noise.rate=0.2,0.4 state=failed`."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from kdbench.config.rules import leaves, nearest
from kdbench.errors import UserError
from kdbench.records.identity import method_word, needs_teacher, noise_word
from kdbench.records.record import Record

# of a record itself; every other word is a key of its configuration
OF_RECORD = ("state", "role", "id", "name")
# what a person says for a group, and where its name is
_GROUPS = {group: f"{group}.name" for group in ("method", "student", "teacher", "dataset", "noise", "imbalance")}


class Filter(NamedTuple):
    """One word: the run's `key` has one of `values`."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, word: str) -> "Filter":
        """Read `key=value[,value]`.

        Raises:
            UserError: it is not of this form.
        """
        key, equals, values = word.partition("=")
        if not (key and equals and values):
            raise UserError(f"{word} is not allowed: filters are key=value[,value], as method=kd or state=failed")
        return cls(key, tuple(values.split(",")))

    def on_contender(self) -> bool:
        """Whether it chooses among methods and teachers, not among what they are compared on."""
        return self.key.split(".")[0] in ("method", "plus", "teacher")

    def says_nothing_of(self, record: Record) -> bool:
        """Whether it is on teachers, and the run has none, or on an option that the run's method does not have."""
        group, _, option = self.key.partition(".")
        if group == "teacher":
            return bool(record.config) and not needs_teacher(record.config)
        return group == "method" and bool(option) and not values_of(record, self.key)

    def holds(self, record: Record) -> bool:
        """Whether the run is meant."""
        found = values_of(record, self.key)
        return any(_same(each, value) for each in found for value in self.values)


def values_of(record: Record, key: str) -> list[Any]:
    """What a run has for a key; more than one where a word has more than one meaning, none where it lacks the key."""
    if key in ("state", "id", "name"):
        return [getattr(record, key)]
    if key == "role":
        return [(record.result or {}).get("role")]
    cfg = record.config
    if not cfg:
        return []
    if key == "method":  # method=at means at alone and at+kd, method=at+kd only these two
        return [cfg["method"]["name"], method_word(cfg)]
    if key == "plus":
        return ["+".join(sorted(cfg["plus"])) or "none"]
    if key == "noise":
        return [cfg["noise"]["name"], noise_word(cfg["noise"])]
    clean = cfg["noise"]["name"] == "none" and cfg["imbalance"]["name"] == "none"
    if key == "teacher.condition" and clean:
        return ["same", "clean"]  # one run, whatever it was asked for as
    node: Any = cfg
    for part in _GROUPS.get(key, key).split("."):
        if not isinstance(node, dict) or part not in node:
            return []
        node = node[part]
    return [node]


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value] == text.lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def check_keys(every: list[Record], filters: list[Filter]) -> None:
    """Refuse a word that can mean no run.

    Raises:
        UserError: a key that no run has.
    """
    for each in filters:
        if every and each.key not in OF_RECORD and not any(values_of(record, each.key) for record in every):
            known = {key for record in every for key, _ in leaves(record.config)} | set(OF_RECORD) | set(_GROUPS)
            raise UserError(f"{each.key}={','.join(each.values)}: no run has {each.key}{nearest(each.key, known)}")


def select(found: Iterable[Record], filters: list[Filter]) -> list[Record]:
    """The runs that all filters mean.

    Raises:
        UserError: a key that no run has.
    """
    every = list(found)
    check_keys(every, filters)
    return [record for record in every if all(each.holds(record) for each in filters)]

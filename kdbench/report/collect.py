"""From records to one pandas frame: a row a finished run, a column a key of its identity or a metric."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from kdbench.config.rules import leaves
from kdbench.records.identity import facts_of, imbalance_word, method_word, needs_teacher, noise_word
from kdbench.records.record import Record

# sections of a record that hold numbers; evaluation.json is a section too
_SECTIONS = ("test", "val", "best_on_test", "cost", "fidelity", "members")
# a cell for which the key has no meaning: it agrees with every value
ANY = "-"
# a key that is null, or that this kind of noise, say, does not have
NULL = "null"


def collect(found: Iterable[Record]) -> tuple[pd.DataFrame, list[tuple[Record, str]]]:
    """The frame of all finished runs.

    Columns are `id name role directory machine torch`; the words of a run (`method dataset student noise imbalance
    teacher teacher.condition seed`); the other facts of its identity by dotted key (`recipe.epochs`); and numbers
    (`test/accuracy`, `cost/train_seconds`). A fact that a run does not have is `null`; where it has no meaning, as
    the teacher of a method without one, it is `-` and agrees with every value.

    Returns:
        (frame, [(record, why it was left out)]).
    """
    rows, left_out = [], []
    for record in found:
        if record.result is None:
            left_out.append((record, record.state))
            continue
        try:
            rows.append(_row(record, record.result))
        except KeyError as error:  # other versions of kdbench had other keys
            left_out.append((record, f"recorded by another version of kdbench: no key {error.args[0]}"))
    frame = pd.DataFrame(rows)
    facts = [column for column in frame.columns if is_fact(column)]
    frame[facts] = frame[facts].astype(object).where(frame[facts].notna(), NULL)
    return frame, left_out


def is_fact(column: str) -> bool:
    """Whether a column is part of what a run is, not of what came out."""
    return "/" not in column and column not in _ABOUT


_ABOUT = ("id", "name", "role", "directory", "machine", "torch", "record")


def _row(record: Record, result: dict[str, Any]) -> dict[str, Any]:
    cfg = result["config"]
    return {
        "id": record.id,
        "name": record.name,
        "role": result["role"],
        "machine": _machine(record),
        "torch": result["versions"]["torch"],
        "record": record,
        "method": method_word(cfg),
        "dataset": cfg["dataset"]["name"],
        "student": cfg["student"]["name"],
        "noise": noise_word(cfg["noise"]),
        "imbalance": imbalance_word(cfg["imbalance"]),
        **_teacher(cfg, result),
        **{key: _plain(value) for key, value in leaves(_own_facts(cfg))},
        **dict(_numbers(result, record)),
    }


def _own_facts(cfg: dict[str, Any]) -> dict[str, Any]:
    """Without the teacher, which `_teacher` tells in words, and what files hold, which only the run could see."""
    facts = facts_of(cfg)
    del facts["dependencies"], facts["dataset"]["fingerprint"]
    return {**facts, "noise.path": cfg["noise"].get("path")}


def _teacher(cfg: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    teacher = cfg["teacher"]
    keys = ["teacher", "teacher.condition", "teacher.source", "teacher.shuffle", "teacher.seed", "teacher.id"]
    keys += [f"teacher.recipe.{key}" for key in teacher["recipe"]]
    if not needs_teacher(cfg):
        return dict.fromkeys(keys, ANY)
    known = {
        "teacher": teacher["name"],
        "teacher.condition": teacher["condition"],
        "teacher.source": teacher["source"],
        "teacher.shuffle": teacher["shuffle"],
        "teacher.seed": teacher["seed"],
        "teacher.id": result["teacher"]["id"],
        **{f"teacher.recipe.{key}": _plain(value) for key, value in teacher["recipe"].items()},
    }
    if teacher["checkpoint"]:  # how a file was trained is not known
        return dict.fromkeys(keys, ANY) | {
            "teacher": f"{teacher['name']} ({result['teacher']['id']})",
            "teacher.condition": "file",
            "teacher.shuffle": teacher["shuffle"],
        }
    if cfg["noise"]["name"] == "none" and cfg["imbalance"]["name"] == "none":
        known["teacher.condition"] = ANY  # the student's data are clean: both conditions are one run
    if "self" in cfg["method"]["needs"]:  # follows from student and method
        known |= {"teacher": ANY, "teacher.source": ANY, "teacher.id": ANY}
    return known


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def _numbers(result: dict[str, Any], record: Record) -> Iterator[tuple[str, float]]:
    sections = {key: result.get(key) for key in _SECTIONS}
    sections["evaluation"] = record.evaluation
    sections["teacher"] = {"test_accuracy": (result.get("teacher") or {}).get("test_accuracy")}
    for section, content in sections.items():
        for key, value in leaves(content or {}):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{section}/{key.replace('.', '/')}", float(value)
    seconds = [result["cost"].get("train_seconds"), result["cost"].get("teacher_seconds")]
    if seconds[0] is not None:
        yield "cost/total_seconds", sum(each for each in seconds if each is not None)


def _machine(record: Record) -> str:
    seen = record.environment
    return f"{seen.get('host', 'unknown machine')}, {seen.get('gpu') or 'CPU'}"

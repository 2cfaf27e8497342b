"""From records to one pandas frame: a row per finished run, a column per key of its identity and per metric."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from kdbench.config.rules import leaves
from kdbench.records.environment import code_version
from kdbench.records.identity import facts_of, imbalance_word, method_word, needs_teacher, noise_word
from kdbench.records.record import Record

# sections of a result that hold numbers; evaluation.json is read as one more
_SECTIONS = ("test", "val", "best_on_test", "cost", "fidelity", "members")
# columns that are neither facts nor numbers
_ABOUT_RECORD = ("id", "name", "role", "directory", "machine", "torch", "kdbench", "record")
# value of a key that does not apply to a run; it agrees with every value
ANY = "-"
# value of a key that is null, or that this option lacks (as `noise.rate` of some kinds of noise)
NULL = "null"


def collect(records: Iterable[Record]) -> tuple[pd.DataFrame, list[tuple[Record, str]]]:
    """The frame of all finished runs, and the records that are not in it.

    Columns are `id name role machine torch kdbench record`; the readable keys of a run (`method dataset student noise
    imbalance teacher teacher.condition`); the other facts of its identity by dotted key (`recipe.epochs`, `seed`); and
    numbers (`test/accuracy`, `cost/train_seconds`). A fact that a run lacks is `null`; one that does not apply, such as
    the teacher of a method without one, is `-` and agrees with every value.

    Returns:
        (frame, [(record, why it was left out)]).
    """
    rows, left_out = [], []
    for record in records:
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
    """Whether a column describes what was run, not what the run resulted in."""
    return "/" not in column and column not in _ABOUT_RECORD


def _row(record: Record, result: dict[str, Any]) -> dict[str, Any]:
    cfg = result["config"]
    return {
        "id": record.id,
        "name": record.name,
        "role": result["role"],
        "machine": _machine(record),
        "torch": result["versions"]["torch"],
        "kdbench": code_version(result),
        "record": record,
        "method": method_word(cfg),
        "dataset": cfg["dataset"]["name"],
        "student": cfg["student"]["name"],
        "noise": noise_word(cfg["noise"]),
        "imbalance": imbalance_word(cfg["imbalance"]),
        **_teacher_facts(cfg, result),
        **{key: _hashable(value) for key, value in leaves(_other_facts(cfg, result))},
        **dict(_numbers(result, record)),
    }


def _other_facts(cfg: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The facts of a run without the teacher, which `_teacher_facts` describes.

    Records of earlier versions hold no facts. Those that follow from the configuration are taken from it; what only the
    run could see, such as the content of its files, is unknown.
    """
    facts = {**(result.get("facts") or facts_of(cfg))}
    of_the_teacher = ("dependencies", "shuffle")
    facts = {key: value for key, value in facts.items() if key not in of_the_teacher}
    facts["code"] = {key: value for key, value in facts["code"].items() if key != "teacher"}
    return {**facts, "noise.path": cfg["noise"].get("path")}


def _teacher_facts(cfg: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    teacher = cfg["teacher"]
    keys = ["teacher", "teacher.condition", "teacher.source", "teacher.shuffle", "teacher.seed", "teacher.id"]
    keys += ["teacher.code"]
    keys += [f"teacher.recipe.{key}" for key in teacher["recipe"]]
    if not needs_teacher(cfg):
        return dict.fromkeys(keys, ANY)
    if teacher["checkpoint"]:  # nothing is known of how a teacher from a file was trained
        return dict.fromkeys(keys, ANY) | {
            "teacher": f"{teacher['name']} ({result['teacher']['id']})",
            "teacher.condition": "file",
            "teacher.shuffle": teacher["shuffle"],
            "teacher.code": (result.get("facts") or {}).get("code", {}).get("teacher"),
        }
    facts = {
        "teacher": teacher["name"],
        "teacher.condition": teacher["condition"],
        "teacher.source": teacher["source"],
        "teacher.shuffle": teacher["shuffle"],
        "teacher.seed": teacher["seed"],
        "teacher.id": result["teacher"]["id"],
        "teacher.code": None,
        **{f"teacher.recipe.{key}": _hashable(value) for key, value in teacher["recipe"].items()},
    }
    if cfg["noise"]["name"] == "none" and cfg["imbalance"]["name"] == "none":
        facts["teacher.condition"] = ANY  # the student's data are clean, so both conditions are the same run
    if "self" in cfg["method"]["needs"]:  # the teacher follows from student and method
        facts |= {"teacher": ANY, "teacher.source": ANY, "teacher.id": ANY}
    return facts


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value


def _numbers(result: dict[str, Any], record: Record) -> Iterator[tuple[str, float]]:
    sections = {key: result.get(key) for key in _SECTIONS}
    sections["evaluation"] = record.evaluation
    sections["teacher"] = {"test_accuracy": (result.get("teacher") or {}).get("test_accuracy")}
    for section, content in sections.items():
        for key, value in leaves(content or {}):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{section}/{key.replace('.', '/')}", float(value)
    student, teacher = result["cost"].get("train_seconds"), result["cost"].get("teacher_seconds")
    if student is not None:
        yield "cost/total_seconds", student + (teacher or 0)


def _machine(record: Record) -> str:
    environment = record.environment
    return f"{environment.get('host', 'unknown machine')}, {environment.get('gpu') or 'CPU'}"

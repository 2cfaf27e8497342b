"""What a run is: the facts that change its result, their hash, and a readable name. Imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from kdbench.config.groups import METHOD_DECLARATIONS
from kdbench.config.networks import network_keys
from kdbench.errors import UserError
from kdbench.files import digest

# Raised whenever the same configuration gives another result, or another id, than it did.
SCHEMA = 2
# Keys that say where things are or how to look at them, not what comes out.
_NOT_IDENTITY = {
    "dataset": {"root", "download", "tree", "workers"},
    "method": set(METHOD_DECLARATIONS) - {"name"},
    "noise": {"path", "matrix"},
    "student": {"init"},
}


class Identity(NamedTuple):
    """What a run is.

    Attributes:
        id: 12 hex digits, the hash of `facts`.
        name: for people; runs that differ may share it.
        facts: what changes the result.
        setting: the same for runs that differ in nothing but the seed; these, and no others, may be averaged.
    """

    id: str
    name: str
    facts: dict[str, Any]
    setting: str


class Contents(NamedTuple):
    """Fingerprints of the files that a run reads or executes, which stand for them in its identity.

    Attributes:
        images: of an image tree; None for a data set that its name identifies.
        labels: of the file that label noise is read from; None without one.
        teacher: of a teacher that is given as a file; None without one.
        code: hashes of source code: of the method (`method`), of the losses added to it (`plus.<name>`), of networks
            from outside (`student`, `teacher`), and of Lightning callbacks (`callbacks.<name>`).
        init: of the weights that the student starts from; None for random ones.
    """

    images: str | None = None
    labels: str | None = None
    teacher: str | None = None
    code: Mapping[str, str] = MappingProxyType({})
    init: str | None = None


_NO_FILES = Contents()


def needs_teacher(cfg: Mapping[str, Any]) -> bool:
    """Whether the method, or a loss added to it, learns from a teacher."""
    return any("teacher" in part["needs"] for part in (cfg["method"], *cfg["plus"].values()))


def facts_of(
    cfg: Mapping[str, Any], contents: Contents = _NO_FILES, dependencies: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What of a configuration changes the result, and nothing else.

    Args:
        cfg: the checked configuration.
        contents: of the files that it reads.
        dependencies: ids of the runs that are finished before it, by what they are for (`teacher` ...).
    """

    def part(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if key not in _NOT_IDENTITY.get(group, ())}

    teachers = dict(dependencies or {}) | ({"teacher": contents.teacher} if contents.teacher else {})
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "method": part("method", cfg["method"]),
        "plus": {name: part("method", node) for name, node in sorted(cfg["plus"].items())},
        "student": {**part("student", cfg["student"]), "init": contents.init},
        "dependencies": teachers,
        "code": dict(contents.code),
        "dataset": {**part("dataset", cfg["dataset"]), "fingerprint": contents.images},
        "noise": part("noise", cfg["noise"]),
        "imbalance": cfg["imbalance"],
        "recipe": cfg["recipe"],
        "precision": cfg["trainer"]["precision"],
        "max_batches": cfg["trainer"]["max_batches"],
        "seed": cfg["seed"],
    }
    if "teacher" in teachers:
        facts["shuffle"] = cfg["teacher"]["shuffle"]
        if cfg["teacher"]["cache_rounding"] != "exact":
            facts["answers"] = cfg["teacher"]["cache_rounding"]
    if cfg["noise"]["name"] == "none":  # all validation labels are clean then
        del facts["noise"]["clean_validation"]
    if contents.labels:
        facts["noise"]["file"] = contents.labels
    trainer = cfg["trainer"]
    facts |= {key: trainer[key] for key in ("callbacks", "deterministic") if trainer.get(key)}  # not in older records
    return facts


def identify(cfg: Mapping[str, Any], contents: Contents, dependencies: Mapping[str, str]) -> Identity:
    """Identity of a configuration; arguments as those of `facts_of`."""
    facts = facts_of(cfg, contents, dependencies)
    corrupted = _noise_words(cfg["noise"]) + _imbalance_words(cfg["imbalance"])
    clean = "_clean" if corrupted and cfg["teacher"]["condition"] == "clean" else ""
    parts = [method_word(cfg)]
    parts += [cfg["teacher"]["name"] + clean] if needs_teacher(cfg) else []
    parts += [cfg["student"]["name"], dataset_word(cfg), *corrupted]
    readable = "-".join(parts)
    # the name does not say everything: the temperature, for one, is not in it
    setting = f"{readable}-{_hash({key: value for key, value in facts.items() if key != 'seed'})[:8]}"
    return Identity(_hash(facts)[:12], f"{readable}-s{cfg['seed']}", facts, setting)


def _hash(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def method_word(cfg: Mapping[str, Any]) -> str:
    """The method and the losses added to it: `at`, `at+kd`."""
    return "+".join([cfg["method"]["name"], *sorted(cfg["plus"])])


def dataset_word(cfg: Mapping[str, Any]) -> str:
    """The data set, as a part of a file name: `user_set` for `user/set` of the Hugging Face Hub."""
    name: str = cfg["dataset"]["name"]
    return name.replace("/", "_")


def noise_word(noise: Mapping[str, Any]) -> str:
    """Kind and rate of the label noise: `none`, `symmetric0.4`, `human_worst`."""
    return "".join(_noise_words(noise)) or "none"


def imbalance_word(imbalance: Mapping[str, Any]) -> str:
    """Kind and strength of the class imbalance: `none`, `longtail100`."""
    return "".join(_imbalance_words(imbalance)) or "none"


def _noise_words(noise: Mapping[str, Any]) -> list[str]:
    if noise["rate"] is None:  # the labels, or the chances of each, are given
        return ["_".join([noise["name"], *([noise["annotation"]] if "annotation" in noise else [])])]
    return [f"{noise['name']}{noise['rate']:g}"] if noise["rate"] else []


def _imbalance_words(imbalance: Mapping[str, Any]) -> list[str]:
    if imbalance["name"] == "none":
        return []
    strength = imbalance.get("factor", imbalance.get("gamma"))
    return [imbalance["name"] + ("" if strength is None else f"{strength:g}")]


def teacher_file_identity(teacher: Mapping[str, Any]) -> str:
    """Identity of a teacher that is given as a file: its content, and how it is used.

    Args:
        teacher: the `teacher` group.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(teacher["checkpoint"])
    used = {**network_keys(teacher), **{key: teacher.get(key) for key in ("classes", "mean", "std")}}
    for key in ("image_size", "classes"):  # records from before these keys lack them
        if used.get(key) is None:
            used.pop(key, None)
    try:
        text = json.dumps([digest(path), used], sort_keys=True)
    except OSError as error:
        raise UserError(f"teacher.checkpoint={path} cannot be read: {error.strerror}") from error
    return f"file-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

"""Resolving a checked configuration into a `RunSpec`. Every check that needs no torch happens here, once a run."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.utils import get_method

from kdbench import loggers
from kdbench.config.derived import teacher_training
from kdbench.config.frozen import FrozenDict
from kdbench.config.overrides import from_overrides
from kdbench.data import imbalance, noise, sources
from kdbench.data.sources import Sizes
from kdbench.errors import UserError
from kdbench.records import weights
from kdbench.records.identity import Contents, identify, needs_teacher, teacher_file_identity
from kdbench.specs.spec import RunSpec


def spec_of(overrides: list[str]) -> RunSpec:
    """The run that these command-line overrides mean.

    Raises:
        UserError: as `kdbench.config.overrides.from_overrides` and `resolve`.
    """
    return resolve(from_overrides(overrides))


def resolve(config: FrozenDict, role: str | None = None) -> RunSpec:
    """Check what can be checked without torch, and find identity and dependencies.

    Args:
        config: the checked configuration.
        role: `teacher` for a run that another one needs; None to take what the method implies.

    Raises:
        UserError: no such data, options that contradict each other, a missing package, a teacher's file that cannot
            be read; for the run itself or for one that it depends on.
    """
    sizes = _check_data(config)
    _check_options(config, sizes)
    dependencies = _dependencies(config, sizes)
    contents = Contents(
        images=sources.fingerprint(config["dataset"]),
        labels=noise.fingerprint(config["noise"]),
        teacher=teacher_file_identity(config["teacher"]) if _has_teacher_file(config) else None,
    )
    identity = identify(config, contents, {name: spec.id for name, spec in dependencies.items()})
    role = role or ("distill" if needs_teacher(config) else "baseline")
    return RunSpec(config, sizes, identity, role, MappingProxyType(dependencies))


def _check_data(config: Mapping[str, Any]) -> Sizes:
    sizes = sources.check(config["dataset"])
    imbalance.check(config["imbalance"], sizes.num_classes)
    noise.check(config["noise"], sizes.num_classes, config["dataset"]["source"])
    return sizes


def _check_options(config: Mapping[str, Any], sizes: Sizes) -> None:
    if (name := config["method"]["name"]) in config["plus"]:
        raise UserError(f"plus=[{name}] is not possible: it is the method already")
    _check_recipe(config["recipe"], "recipe")
    loggers.check(config["logger"])
    if _has_teacher_file(config):
        weights.check_classes(Path(config["teacher"]["checkpoint"]), "teacher.checkpoint", sizes.num_classes)
    elif needs_teacher(config):
        _check_recipe(config["teacher"]["recipe"], "teacher.recipe")


def _check_recipe(recipe: Mapping[str, Any], key: str) -> None:
    drops, warmup, epochs = recipe["drops"], recipe["warmup_epochs"], recipe["epochs"]
    if not all(isinstance(drop, int | float) and 0 < drop < 1 for drop in drops):
        raise UserError(f"{key}.drops={drops} is not allowed: fractions of the training, each in (0, 1)")
    if recipe["stop_after"] is not None and recipe["stop_after"] > epochs:
        raise UserError(f"{key}.stop_after={recipe['stop_after']} is not allowed: {key}.epochs={epochs} is less")
    if warmup >= epochs:
        raise UserError(f"{key}.warmup_epochs={warmup} is not allowed: it must be < {key}.epochs={epochs}")


def _has_teacher_file(config: Mapping[str, Any]) -> bool:
    return needs_teacher(config) and bool(config["teacher"]["checkpoint"])


def _dependencies(config: Mapping[str, Any], sizes: Sizes) -> dict[str, RunSpec]:
    """The teacher's run, unless it comes as a file, and the runs that the method declares."""
    dependencies = {}
    if needs_teacher(config) and not config["teacher"]["checkpoint"]:
        dependencies["teacher"] = resolve(teacher_training(config), "teacher")
    if declared := config["method"].get("dependencies"):
        for name, needed in get_method(declared)(config, sizes).items():
            try:
                dependencies[name] = resolve(needed, "teacher")
            except UserError as error:
                what = name.replace("_", " ")
                raise UserError(f"method={config['method']['name']} cannot have its {what}: {error}") from error
    return dependencies

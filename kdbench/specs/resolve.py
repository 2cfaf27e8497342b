"""Resolving a checked configuration into a `RunSpec`. Every check that needs no torch happens here, once a run."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.utils import get_method

from kdbench import loggers
from kdbench.config.derived import teacher_training
from kdbench.config.frozen import FrozenDict
from kdbench.config.networks import check_network
from kdbench.config.overrides import from_overrides
from kdbench.data import imbalance, noise, sources
from kdbench.data.sources import Sizes
from kdbench.errors import UserError
from kdbench.files import digest
from kdbench.records import weights
from kdbench.records.identity import Contents, identify, needs_teacher, teacher_file_identity
from kdbench.records.source import source_hash
from kdbench.specs import recipes
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
        code=_code(config),
        init=_init(config, "student"),
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
    recipes.check(config["recipe"], "recipe")
    recipes.check_cutout(config["recipe"], "recipe", sizes.image_size)
    loggers.check(config["logger"])
    _check_callbacks(config["trainer"]["callbacks"] or {})
    check_network(config["student"], "student")
    if needs_teacher(config):
        _check_shuffle(config)
        check_network(config["teacher"], "teacher")
        _init(config, "teacher")
        if config["teacher"]["cache_rounding"] != "exact" and config["teacher"]["cache"] != "always":
            raise UserError(
                f"teacher.cache_rounding={config['teacher']['cache_rounding']} is not allowed with "
                f"teacher.cache={config['teacher']['cache']}, only with always"
            )
    if _has_teacher_file(config):
        _check_teacher_file(config, sizes)
    elif needs_teacher(config):
        for key, of_data in (("classes", "classes"), ("mean", "normalisation"), ("std", "normalisation")):
            if (value := config["teacher"][key]) is not None:
                raise UserError(
                    f"teacher.{key}={value} is not allowed without teacher.checkpoint: a teacher that kdbench trains "
                    f"has the {of_data} of the data"
                )
        recipes.check(config["teacher"]["recipe"], "teacher.recipe")
        recipes.check_cutout(config["teacher"]["recipe"], "teacher.recipe", sizes.image_size)


def _check_shuffle(config: Mapping[str, Any]) -> None:
    if config["teacher"]["shuffle"] == "class" and (mixing := recipes.mixing(config["recipe"], "recipe")):
        raise UserError(f"{mixing} is not possible with teacher.shuffle=class, only 0: a mixed image has two classes")


def _check_callbacks(callbacks: Mapping[Any, Any]) -> None:
    """Refuse what cannot be a callback; whether a class derives from Lightning's only its import can tell."""
    for name, options in callbacks.items():
        key, target = f"trainer.callbacks.{name}", options.get("_target_") if isinstance(options, Mapping) else None
        if not (isinstance(name, str) and isinstance(target, str)):
            raise UserError(
                f"{key}={options} is not allowed: each callback is a dict under its name, with _target_, the import "
                "path of the class, and the arguments of the class"
            )
        if target.partition(".")[0] in sys.stdlib_module_names:
            raise UserError(f"{key}._target_={target} is not allowed: must be a subclass of pytorch_lightning.Callback")
        try:
            source_hash(target)
        except UserError as error:
            raise UserError(f"{key}._target_={target} is not possible: {error}") from error


def _check_teacher_file(config: Mapping[str, Any], sizes: Sizes) -> None:
    teacher = config["teacher"]
    if teacher["init"] not in (None, config["student"]["init"]):  # teacher=self has the student's
        raise UserError(f"teacher.init={teacher['init']} is not allowed: teacher.checkpoint has all weights already")
    classes, classifier = teacher["classes"], teacher["classifier"]
    _check_classes(classes, sizes.num_classes)
    weights.check_classes(Path(teacher["checkpoint"]), "teacher.checkpoint", sizes.num_classes, classes, classifier)
    for key in ("mean", "std"):
        values = teacher[key]
        if values is None:
            if not config["dataset"]["normalize"]:
                raise UserError(
                    f"teacher.{key}=null is not possible with dataset.normalize=false and "
                    f"teacher.checkpoint={teacher['checkpoint']}: give teacher.mean and teacher.std, with which it was "
                    "trained; [0.0] and [1.0] if it was trained on images in [0, 1]"
                )
            continue
        if len(values) not in (1, sizes.in_chans):
            raise UserError(f"teacher.{key}={values}: must have 1 or dataset.channels={sizes.in_chans} values")
        if not all(isinstance(value, int | float) and (key == "mean" or value > 0) for value in values):
            raise UserError(f"teacher.{key}={values} is not allowed: must be numbers{' > 0' if key == 'std' else ''}")


def _check_classes(classes: Sequence[Any] | None, num_classes: int) -> None:
    """Refuse a list that does not give each class of the data one output of the teacher."""
    if classes is None:
        return
    if not all(type(output) is int and output >= 0 for output in classes) or len(set(classes)) < len(classes):
        raise UserError(f"teacher.classes={classes} is not allowed: must be different integers >= 0")
    if len(classes) != num_classes:
        raise UserError(
            f"teacher.classes={classes} is not allowed: must have one output for each of the {num_classes} classes of "
            f"the data, not {len(classes)}"
        )


def _has_teacher_file(config: Mapping[str, Any]) -> bool:
    return needs_teacher(config) and bool(config["teacher"]["checkpoint"])


def _code(config: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the source of the method, of the losses added to it, of networks from outside, and of callbacks."""
    added = {f"plus.{name}": options["_target_"] for name, options in sorted(config["plus"].items())}
    callbacks = config["trainer"]["callbacks"] or {}
    added |= {f"callbacks.{name}": options["_target_"] for name, options in callbacks.items()}
    targets = {"method": config["method"]["_target_"], **added}
    for group in ("student", "teacher") if _has_teacher_file(config) else ("student",):
        if config[group]["source"] == "custom":
            targets[group] = config[group]["name"]
    return {part: source_hash(target) for part, target in targets.items()}


def _init(config: Mapping[str, Any], group: str) -> str | None:
    """Fingerprint of the weights that a network starts from; None for random ones."""
    path = config[group]["init"]
    if path is None:
        return None
    try:
        return digest(Path(path))[:16]
    except OSError as error:
        raise UserError(f"{group}.init={path} cannot be read: {error.strerror}") from error


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

"""The configuration: where `conf/` is, the rules written in it, and errors a person can act on.

Every leaf of `conf/` ends in a comment `# <rule>: <prose>`, the one place that says what a key may be; its
language is that of `kdbench.rules`. Nothing here imports torch, so wrong input is refused before anything is loaded.
"""

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from kdbench.errors import UserError
from kdbench.models.catalogue import NETWORKS
from kdbench.rules import Rule, nearest

_HERE = Path(__file__).parent
# a wheel carries conf/ inside the package; in a checkout it is beside it
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
GROUPS = "method plus teacher student dataset noise imbalance recipe trainer logger experiment debug".split()
CONFIG_ERRORS = (HydraException, OmegaConfBaseException)


def version_base() -> str | None:
    """Hydra 1.3 wants its version named; 1.4 deprecates the argument."""
    import hydra

    return "1.3" if hydra.__version__.startswith("1.3") else None


def register() -> None:
    """Add our sweeper, and what follows from a table: a student and a teacher per network, a `plus` per method."""
    store = ConfigStore.instance()
    sweeper = {"_target_": "hydra_plugins.kdbench.GridSweeper", "max_batch_size": None, "params": None}
    store.store(group="hydra/sweeper", name="kdbench", node=sweeper)
    for group in ("student", "teacher"):
        for name in NETWORKS:
            store.store(group=group, name=name, node={"defaults": ["_base", "_self_"], "name": name})
        store.store(group=group, name="timm", node={"defaults": ["_base", "_self_"], "source": "timm"})
    for method in _added():
        store.store(group="plus", name=method, node={"defaults": [{f"/method@{method}": method}]})


def _added() -> list[str]:
    """Methods whose loss can be added to another's: those that need neither a step nor a teacher of their own."""
    return [name for name in options("method") if name != "ce" and not {"step", "self"} & set(needs(name))]


def needs(method: str) -> list[str]:
    """What the runner must provide for a method.

    `teacher`; `self`, the teacher being of the student's kind; `step`, the method makes the training step itself;
    `synthetic`, the answers of a network trained on synthetic data.
    """
    found: list[str] = content(f"method/{method}")["needs"]
    return found


def content(option: str) -> dict[str, Any]:
    """What one file of `conf/` and the files it builds on say, uncomposed."""
    return copy.deepcopy(_content(option))


@lru_cache
def _content(option: str) -> dict[str, Any]:
    group = option.rpartition("/")[0]
    own: dict[str, Any] = yaml.safe_load((CONF / f"{option}.yaml").read_text()) or {}
    parents = [parent for parent in own.pop("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= content(f"{group}/{parent}")
    return merged | own


# ------------------------------------------------------------------------------------------------ rules


@lru_cache
def rules(option: str) -> dict[str, Rule]:
    """The rules of one file of `conf/` (`method/kd`; `train` for the root) and of the files it builds on.

    Returns:
        Dotted key within the group -> rule; empty for options that live elsewhere (a user's own folder).

    Raises:
        ValueError: a comment that is not a rule.
    """
    group, _, name = option.rpartition("/")
    file = CONF / f"{option}.yaml"
    found: dict[str, Rule] = {}
    if group in ("student", "teacher") and name != "_base":
        return rules(f"{group}/_base")
    if not file.exists():
        return found
    text = file.read_text()
    for parent in (yaml.safe_load(text) or {}).get("defaults", []):
        if group and isinstance(parent, str) and parent != "_self_":
            found |= rules(f"{group}/{parent.partition('@')[0]}")  # recipe/nav200 takes crd240@recipe
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"(\s*)(\w+):", line)
        if not match:
            continue
        path = [(depth, key) for depth, key in path if depth < len(match[1])] + [(len(match[1]), match[2])]
        if comment := re.search(r"\s#\s(.+?):\s", line):
            found[".".join(key for _, key in path)] = Rule.parse(comment[1])
    return found


def description(option: str) -> str:
    """First comment line of a file of `conf/`."""
    lines = (CONF / f"{option}.yaml").read_text().splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)


def options(group: str) -> list[str]:
    """Names of the files of a group of `conf/`, folders included, sorted; those with a leading underscore are parts."""
    files = [file for file in (CONF / group).rglob("*.yaml") if not file.stem.startswith("_")]
    return sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in files)


# ------------------------------------------------------------------------------------------------ checks


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a nested mapping; lists and empty mappings count as values."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check(cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a composed configuration and hold every value against its rule.

    Args:
        cfg: the composed job configuration.
        choices: group -> option chosen, as Hydra recorded them.

    Returns:
        The configuration as a plain nested dict.

    Raises:
        UserError: the first key whose value is not allowed, or a key nobody knows.
    """
    try:
        plain = _resolved(cfg)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        absent = min(OmegaConf.missing_keys(cfg))
        raise UserError(f"{absent} must be given: {absent}=... (rule: {_rule_text(absent, choices)})") from None
    known = _known(choices)
    foreign = tuple(f"{group}." for group, option in choices.items() if group in GROUPS and _is_foreign(group, option))
    refused = []
    for key, value in leaves(plain):
        rule = known.get(key)
        if rule is None and not key.startswith(foreign):
            raise UserError(f"unknown key {key}={value}" + nearest(key, known))
        if rule and (reason := rule.refusal(value)):
            refused.append(f"{key}={_show(value)} is not allowed: it {reason}")
            if not _follows(cfg, key):
                raise UserError(refused[-1])
    if refused:
        raise UserError(refused[0])
    if "self" in plain["method"]["needs"]:
        plain["teacher"] |= plain["student"]
    return plain


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, all references followed.

    OmegaConf parses every reference by a grammar in pure Python, 0.2 ms each, which a grid of jobs cannot afford; here
    it does so for all but the plain `${group.key}`.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False, throw_on_missing=True)  # type: ignore[assignment]

    def follow(node: dict[str, Any]) -> bool:
        for key, value in node.items():
            if isinstance(value, dict):
                if not follow(value):
                    return False
            elif "${" in str(value):
                match = re.fullmatch(r"\$\{(\w+)\.(\w+)\}", value) if isinstance(value, str) else None
                group = plain.get(match[1]) if match else None
                target = group.get(match[2]) if match and isinstance(group, dict) else None
                if target is None or isinstance(target, dict) or "${" in str(target):
                    return False
                node[key] = copy.copy(target)
        return True

    if "${" in str(plain.get("outputs")):
        plain["outputs"] = cfg.outputs
    if follow(plain):
        return plain
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _follows(cfg: DictConfig, key: str) -> bool:
    """Whether a key only repeats another one, which is then the one to name."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_interpolation(node, name)


def _known(choices: Mapping[str, Any]) -> dict[str, Rule]:
    chosen = {group: choices.get(group) for group in GROUPS if group != "plus"}
    return _rules_of(tuple(f"{group}/{option}" for group, option in chosen.items() if isinstance(option, str)))


@lru_cache
def _rules_of(chosen: tuple[str, ...]) -> dict[str, Rule]:
    found = dict(rules("train"))
    for option in chosen:
        found |= {f"{option.partition('/')[0]}.{key}": rule for key, rule in rules(option).items()}
    for method in options("method"):
        found |= {f"plus.{method}.{key}": rule for key, rule in rules(f"method/{method}").items()}
    return found


def _is_foreign(group: str, option: Any) -> bool:
    if group == "plus" or not isinstance(option, str):
        return False
    return group not in ("student", "teacher") and not (CONF / group / f"{option}.yaml").exists()


def _rule_text(key: str, choices: Mapping[str, Any]) -> str:
    rule = _known(choices).get(key)
    return rule.text if rule else "any"


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


# ------------------------------------------------------------------------------------------------ composing


def composed(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compose and check the configuration that these command-line overrides mean.

    Returns:
        (configuration as a plain dict, group -> option chosen).

    Raises:
        UserError: any override is wrong; the message is one line.
    """
    try:
        cfg, choices = _compose(overrides)
        return check(cfg, choices), choices
    except CONFIG_ERRORS as error:
        raise UserError(explain(error, overrides)) from error


def _compose(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    with hydra_at_conf():
        return without_hydra(compose("train", overrides=overrides, return_hydra_config=True))


@contextmanager
def hydra_at_conf() -> Iterator[ConfigLoader]:
    """Hydra's loader over `conf/` and our own options; the Hydra that was there, of a sweep, is back afterwards."""
    register()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=version_base()):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = before


def without_hydra(cfg: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """A composed configuration without Hydra's own node, and group -> option chosen."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg, dict(choices)  # type: ignore[arg-type]


def explain(error: Exception, overrides: list[str] | None = None) -> str:
    """One line for an error of Hydra or OmegaConf: what was wrong, what is allowed, the nearest right word."""
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).partition("/")
        if group not in GROUPS:  # hydra/launcher
            group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "plus" and option in options("method"):
            why = "it makes the training step itself" if "step" in needs(option) else "it has a teacher of its own"
            why = "it adds no loss" if option == "ce" else why
            return f"plus=[{option}] is not possible: {why}; use method={option}, which takes plus=[...] itself"
        found = options("experiment") if group == "experiment" else error.options or []
        found = _added() if group == "plus" else found
        known = [name for name in found if not name.startswith("_")]
        return f"{group}={option} is not known{nearest(option, known)}; known: {', '.join(known)}"
    if isinstance(error, ConfigCompositionException):
        if match := re.match(r"Could not override '([^']+)'", text):
            key = match[1].split("@")[0]
            return f"unknown key {key}{nearest(key, _vocabulary(overrides))}"
        if match := re.match(r"Error merging override (.*)", text):
            cause = str(error.__cause__ or "").strip().splitlines()
            return f"{match[1]} is not allowed" + (f": {cause[0]}" if cause else "")
    lines = text.splitlines() or [type(error).__name__]
    return lines[0]


def _vocabulary(overrides: list[str] | None) -> list[str]:
    """All keys of the configuration that the valid group choices among `overrides` give."""
    words = overrides if overrides is not None else sys.argv[1:]
    chosen = [word for word in words if re.match(rf"({'|'.join(GROUPS)})=[\w\[\]-]+$", word)]
    for attempt in (chosen, []):
        try:
            cfg, _ = _compose(attempt)
        except CONFIG_ERRORS:
            continue
        keys = [key for key, _ in leaves(OmegaConf.to_container(cfg, resolve=False))]  # type: ignore[arg-type]
        return GROUPS + keys
    return GROUPS

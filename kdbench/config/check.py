"""Holding a composed configuration against the rules of `conf/`. Imports no torch, so that refusals come at once."""

import copy
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from kdbench.config.frozen import FrozenDict
from kdbench.config.groups import CONF, GROUPS, content, options
from kdbench.config.rules import Rule, leaves, nearest, rules_of_choices
from kdbench.errors import UserError


def check(cfg: DictConfig, choices: Mapping[str, Any]) -> FrozenDict:
    """Resolve a composed configuration and hold every value against its rule.

    Args:
        cfg: the composed job configuration.
        choices: group -> chosen option, as Hydra recorded them.

    Returns:
        The configuration, nested and read-only.

    Raises:
        UserError: the first key whose value is not allowed, that is fixed by its file, or that nobody knows.
    """
    rules = _rules(choices)
    try:
        plain = _resolved(cfg)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        absent = min(OmegaConf.missing_keys(cfg))
        allowed = rules[absent].text if absent in rules else "any"
        raise UserError(f"{absent} must be given: {absent}=... (rule: {allowed})") from None
    foreign = tuple(f"{group}." for group, option in choices.items() if group in GROUPS and _is_foreign(group, option))
    refused = []
    for key, value in leaves(plain):
        rule = rules.get(key)
        if rule is None:
            if not key.startswith(foreign):
                raise UserError(f"unknown key {key}={value}" + nearest(key, rules))
            continue
        if rule.fixed:
            _check_fixed(key, value, choices)
        if reason := rule.refusal(value):
            refused.append(f"{key}={_shown(value)} is not allowed: it {reason}")
            if not _is_reference(cfg, key):
                raise UserError(refused[-1])
    if refused:
        raise UserError(refused[0])
    if "self" in plain["method"]["needs"]:
        plain["teacher"] |= plain["student"]
    return FrozenDict.of(plain)


def _rules(choices: Mapping[str, Any]) -> dict[str, Rule]:
    chosen = {group: choices.get(group) for group in GROUPS if group != "plus"}
    return rules_of_choices(tuple(f"{group}/{option}" for group, option in chosen.items() if isinstance(option, str)))


def _check_fixed(key: str, value: Any, choices: Mapping[str, Any]) -> None:
    """Refuse a key that differs from what its file says."""
    group, _, name = key.partition(".")
    if group == "plus":
        method, _, name = name.partition(".")
        option, choose = f"method/{method}", f"plus=[{method}]"
    else:
        option, choose = f"{group}/{choices[group]}", f"{group}={choices[group]}"
    fixed = content(option)
    for part in name.split("."):
        fixed = fixed[part]
    if value != fixed:
        hint = f"; {group}={value} chooses another" if value in options(group) else ""
        raise UserError(f"{key}={_shown(value)} is not allowed: {choose} fixes it at {_shown(fixed)}{hint}")


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, with every reference followed.

    OmegaConf parses every reference by a grammar in pure Python, at 0.2 ms each, which a grid of many jobs cannot
    afford; here OmegaConf does so for all but the plain `${group.key}`.
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


def _is_reference(cfg: DictConfig, key: str) -> bool:
    """Whether a key only repeats another one, which is then the one to name."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_interpolation(node, name)


def _is_foreign(group: str, option: Any) -> bool:
    if group == "plus" or not isinstance(option, str):
        return False
    return group not in ("student", "teacher") and not (CONF / group / f"{option}.yaml").exists()


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)

"""Holding a composed configuration against the rules of `conf/`. Imports no torch, so that refusals come at once."""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from kdbench.config import plugins
from kdbench.config.frozen import FrozenDict
from kdbench.config.groups import GROUPS, content, file_of, options
from kdbench.config.plugin_options import WITHOUT_NODE, check_complete, is_argument, rules_of_plugin
from kdbench.config.rates import rate_of
from kdbench.config.rules import Rule, leaves, nearest, rules_of_choices
from kdbench.errors import UserError

_ANYTHING = Rule("any", (object,), (), -math.inf, math.inf, False, False, True)


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
    chosen = _chosen(choices)
    rules = {**rules_of_choices(chosen)}
    for option in chosen:
        check_complete(option)
        rules |= rules_of_plugin(option, rules)
    try:
        plain = _resolved(cfg)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        absent = min(OmegaConf.missing_keys(cfg))
        allowed = rules[absent].text if absent in rules else "any"
        raise UserError(f"{absent} must be given: {absent}=... (rule: {allowed})") from None
    _choose_rates(plain, rules["recipe.lr"])
    refused = []
    for key, value in leaves(plain):
        rule = rules.get(key) or _rule_of_parent(key, rules)
        if rule is None:
            if not is_argument(key, plain):
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


def _choose_rates(plain: dict[str, Any], rule: Rule) -> None:
    """Replace learning rates that are given by network with the one of the network at hand."""
    learner = plain["student"]
    teacher = learner if "self" in plain["method"]["needs"] else plain["teacher"]
    for key, recipe, network in (
        ("recipe.lr", plain["recipe"], learner),
        ("teacher.recipe.lr", plain["teacher"]["recipe"], teacher),
    ):
        recipe["lr"] = rate_of(recipe["lr"], network, key, rule)


def _chosen(choices: Mapping[str, Any]) -> tuple[str, ...]:
    """The chosen option of every group but `plus`, such as `method/kd`.

    Raises:
        UserError: an option from a folder that Hydra knows and kdbench does not.
    """
    chosen = []
    for group in GROUPS:
        option = choices.get(group)
        if group == "plus" or not isinstance(option, str):
            continue
        chosen.append(f"{group}/{option}")
        if group not in ("student", "teacher", *WITHOUT_NODE) and file_of(chosen[-1]) is None:
            raise UserError(f"{group}={option} comes from a folder that is no plugin: name it in {plugins.VARIABLE}")
    return tuple(chosen)


def _rule_of_parent(key: str, rules: Mapping[str, Rule]) -> Rule | None:
    """The rule of a key above that holds a dictionary of any content, such as arguments of a network."""
    above = key.rpartition(".")[0]
    while "." in above:
        if (rule := rules.get(above)) and dict in rule.types:
            return _ANYTHING
        above = above.rpartition(".")[0]
    return None


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
                if not match or not isinstance(group, dict) or match[2] not in group:
                    return False
                target = group[match[2]]
                if "${" in str(target):
                    return False
                node[key] = copy.deepcopy(target)
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


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)

"""Errors of Hydra and OmegaConf in one line: what was wrong, what is allowed, the nearest right word."""

import re
import sys

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from kdbench.config.compose import CONFIG_ERRORS, compose
from kdbench.config.groups import GROUPS, addable_methods, header, options
from kdbench.config.rules import leaves, nearest


def explain(error: Exception, overrides: list[str] | None = None) -> str:
    """One line for an error of Hydra or OmegaConf.

    Args:
        error: what was raised.
        overrides: the overrides that were composed; None for those of the command line.
    """
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error, str(error.missing_cfg_file))
    if isinstance(error, ConfigCompositionException):
        if match := re.match(r"Could not override '([^']+)'", text):
            key = match[1].split("@")[0]
            return f"unknown key {key}{nearest(key, _vocabulary(overrides))}"
        if match := re.match(r"Error merging override (.*)", text):
            cause = str(error.__cause__ or "").strip().splitlines()
            return f"{match[1]} is not allowed" + (f": {cause[0]}" if cause else "")
    lines = text.splitlines() or [type(error).__name__]
    return lines[0]


def _unknown_option(error: MissingConfigException, file: str) -> str:
    group, _, option = file.partition("/")
    if group not in GROUPS:  # hydra/launcher
        group, _, option = file.rpartition("/")
    if group == "plus" and option in options("method"):
        why = header(f"method/{option}")["plus"]
        return f"plus=[{option}] is not possible: {why}; use method={option}, which takes plus=[...] itself"
    known = options("experiment") if group == "experiment" else error.options or []
    known = addable_methods() if group == "plus" else known
    known = [name for name in known if not name.startswith("_")]
    return f"{group}={option} is not known{nearest(option, known)}; known: {', '.join(known)}"


def _vocabulary(overrides: list[str] | None) -> list[str]:
    """All keys of the configuration that the valid group choices among `overrides` give."""
    given = overrides if overrides is not None else sys.argv[1:]
    chosen = [word for word in given if re.match(rf"({'|'.join(GROUPS)})=[\w\[\]-]+$", word)]
    for attempt in (chosen, []):
        try:
            cfg, _ = compose(attempt)
        except CONFIG_ERRORS:
            continue
        keys = [key for key, _ in leaves(OmegaConf.to_container(cfg, resolve=False))]  # type: ignore[arg-type]
        return GROUPS + keys
    return GROUPS

"""Many configurations of one grid, composed fast: Hydra composes what is hard, once; the rest is put in place.

Hydra takes some 0.1 s to compose one configuration. The jobs of a grid differ in values, which Hydra itself applies to
a composed configuration at the end, and in the options of plain groups: files that say nothing outside their group, so
that the node of one can replace the node of another. A preset, `plus=[...]` and whatever else is not plain is left to
Hydra, once for each combination. The fast way uses private parts of Hydra. Where they are missing, or give another
result than Hydra for one of the first two jobs, Hydra composes every job.
"""

import copy
import logging
import pickle
from functools import cached_property
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench.config.compose import without_hydra
from kdbench.config.hydra_private import Repository, Unavailable, apply_values

log = logging.getLogger("kdbench")
Choices = dict[str, Any]
_COMPARED = 2  # jobs: the first may be all defaults, and the second differs from it


class GridComposer:
    """Composes the jobs of a grid.

    Args:
        loader: Hydra's, with its search path.
        config_name: of the primary configuration.
        fixed: overrides that all jobs share (those of `hydra.*`).
    """

    def __init__(self, loader: ConfigLoader, config_name: str, fixed: list[str]) -> None:
        self._hydra = _ByHydra(loader, config_name, fixed)
        self._fast: _Fast | None = None
        self._compared = 0
        try:
            self._fast = _Fast(self._hydra, Repository(loader, config_name, fixed), loader)
        except Unavailable as error:
            log.warning("sweeps start more slowly with this version of Hydra: %s", error)

    def compose(self, overrides: list[str]) -> tuple[DictConfig, Choices]:
        """What Hydra composes from `overrides`, without its own node; and group -> chosen option.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra.
        """
        if self._fast is None:
            return self._hydra.compose(overrides)
        try:
            composed = self._fast.compose(overrides)
        except Unavailable:
            return self._hydra.compose(overrides)
        if self._compared < _COMPARED:
            self._compared += 1
            expected = self._hydra.compose(overrides)
            if _plain(composed) != _plain(expected):
                log.warning("sweeps start more slowly with this version of Hydra: it composes differently")
                self._fast = None
                return expected
        return composed


def _plain(composed: tuple[DictConfig, Choices]) -> tuple[Any, Choices]:
    cfg, choices = composed
    own = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    return OmegaConf.to_container(cfg, resolve=False), own


class _ByHydra:
    """Hydra's own, public way."""

    def __init__(self, loader: ConfigLoader, config_name: str, fixed: list[str]) -> None:
        self._loader, self._config_name, self._fixed = loader, config_name, fixed

    def compose(self, overrides: list[str]) -> tuple[DictConfig, Choices]:
        cfg = self._loader.load_configuration(self._config_name, [*self._fixed, *overrides], run_mode=RunMode.RUN)
        return without_hydra(cfg)


class _Fast:
    """Takes the nodes of plain options from their files; every method may raise `Unavailable`."""

    def __init__(self, hydra: _ByHydra, repository: Repository, loader: ConfigLoader) -> None:
        self._hydra = hydra
        self._repository = repository
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], tuple[DictConfig, Choices]] = {}
        self._filled: dict[tuple[str, ...], tuple[bytes, Choices]] = {}
        self._nodes: dict[tuple[str, str], DictConfig | None] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, overrides: list[str]) -> tuple[DictConfig, Choices]:
        parsed = [self._parse(override) for override in overrides]
        grouped = [override for override in parsed if self._is_group(override)]
        key = tuple(str(override.input_line) for override in grouped)
        if key not in self._filled:
            cfg, choices = self._fill(grouped)
            self._filled[key] = pickle.dumps(cfg), choices  # a copy by pickle is four times as fast as deepcopy
        filled, choices = self._filled[key]
        cfg = pickle.loads(filled)
        apply_values([override for override in parsed if not self._is_group(override)], cfg)
        return cfg, choices

    def _fill(self, grouped: list[Override]) -> tuple[DictConfig, Choices]:
        """The base of the hard choices, with the nodes of the plain ones."""
        hard = [override for override in grouped if not self._is_plain(override)]
        touched = self._touched(self._base(hard)[1])
        hard = [each for each in grouped if not self._is_plain(each) or each.key_or_group in touched]
        base, choices = self._base(hard)
        cfg, choices = copy.deepcopy(base), dict(choices)
        for override in grouped:
            if override not in hard:
                group, option = override.key_or_group, str(override.value())
                cfg[group] = self._node(group, option)
                choices[group] = option
        return cfg, choices

    def _base(self, hard: list[Override]) -> tuple[DictConfig, Choices]:
        lines = tuple(str(override.input_line) for override in hard)
        if lines not in self._bases:
            self._bases[lines] = self._hydra.compose(list(lines))
        return self._bases[lines]

    def _parse(self, override: str) -> Override:
        if override not in self._parsed:
            self._parsed[override] = self._parser.parse_overrides([override])[0]
        return self._parsed[override]

    def _is_group(self, override: Override) -> bool:
        name = override.key_or_group
        if name not in self._groups:
            self._groups[name] = self._repository.has_group(name)
        return self._groups[name] and not isinstance(override.value(), dict)

    def _is_plain(self, override: Override) -> bool:
        group, option = override.key_or_group, override.value()
        changes = override.type == OverrideType.CHANGE and override.package is None
        # a group that is not in the defaults list has no node to replace
        known = group in self._defaults and isinstance(option, str)
        return changes and known and self._node(group, str(option)) is not None

    @cached_property
    def _defaults(self) -> Choices:
        return self._base([])[1]

    def _node(self, group: str, option: str) -> DictConfig | None:
        """The node of a plain option: its own content merged with that of the options of its group that it names."""
        key = (group, option)
        if key not in self._nodes:
            self._nodes[key] = self._load(group, option)
        return self._nodes[key]

    def _load(self, group: str, option: str) -> DictConfig | None:
        file = self._repository.option(group, option)
        if file is None or file.package is not None or file.parents is None:
            return None
        parts: list[DictConfig] = []
        for parent in file.parents if "_self_" in file.parents else [*file.parents, "_self_"]:
            part = file.content if parent == "_self_" else self._node(group, parent)
            if part is None:
                return None
            parts.append(part)
        merged = OmegaConf.merge(*parts)
        assert isinstance(merged, DictConfig)
        return merged

    def _touched(self, choices: Choices) -> set[str]:
        """Groups into whose nodes the chosen presets (options of the package `_global_`) write."""
        touched: set[str] = set()
        for group, option in choices.items():
            if group.startswith("hydra/") or not isinstance(option, str):
                continue
            file = self._repository.option(group, option)
            if file is None or file.package != "_global_":
                continue
            touched |= {str(key) for key in file.content}
            if file.brings_groups:
                touched |= set(choices)  # it brings files of its own: all is Hydra's
        return touched

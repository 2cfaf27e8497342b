"""Many configurations of one grid, composed fast: Hydra composes what is hard, once; the rest is put in place.

Hydra takes some 0.1 s to compose one configuration. The jobs of a grid differ in values, which Hydra itself applies to
a composed configuration at the end, and in the options of plain groups: files that say nothing outside their group, so
that the node of one can take the place of another's. A preset, `plus=[...]` and whatever else is not plain is left to
Hydra, once for each combination. `tests/test_composer.py` holds the result against Hydra's own.
"""

import copy
import pickle
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench.config import without_hydra

Choices = dict[str, Any]


class Composer:
    """Composes jobs that share a primary configuration.

    Args:
        loader: Hydra's, with its search path.
        config_name: of the primary configuration.
        fixed: overrides that all jobs share (those of `hydra.*`).
    """

    def __init__(self, loader: ConfigLoaderImpl, config_name: str, fixed: list[str]) -> None:
        self._loader = loader
        self._config_name = config_name
        self._fixed = fixed
        self._parser = OverridesParser.create(config_loader=loader)
        # with the folders of hydra.searchpath
        self._repository = loader._parse_overrides_and_create_caching_repo(config_name, fixed)[1]
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], tuple[DictConfig, Choices]] = {}
        self._filled: dict[tuple[str, ...], tuple[bytes, Choices]] = {}
        self._nodes: dict[tuple[str, str], DictConfig | None] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, words: list[str]) -> tuple[DictConfig, Choices]:
        """What Hydra composes from the overrides `words`, without its own node; and group -> option chosen.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra.
        """
        overrides = [self._parse(word) for word in words]
        grouped = [override for override in overrides if self._is_group(override)]
        key = tuple(str(override.input_line) for override in grouped)
        if key not in self._filled:
            cfg, choices = self._fill(grouped)
            self._filled[key] = pickle.dumps(cfg), choices  # a copy by pickle is four times as fast as deepcopy
        filled, choices = self._filled[key]
        cfg = pickle.loads(filled)
        values = [override for override in overrides if not self._is_group(override)]
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg, choices

    def _fill(self, grouped: list[Override]) -> tuple[DictConfig, Choices]:
        """The base of the hard choices with the nodes of the plain ones."""
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
        words = tuple(str(override.input_line) for override in hard)
        if words not in self._bases:
            cfg = self._loader.load_configuration(self._config_name, [*self._fixed, *words], run_mode=RunMode.RUN)
            self._bases[words] = without_hydra(cfg)
        return self._bases[words]

    def _parse(self, word: str) -> Override:
        if word not in self._parsed:
            self._parsed[word] = self._parser.parse_overrides([word])[0]
        return self._parsed[word]

    def _is_group(self, override: Override) -> bool:
        name = override.key_or_group
        if name not in self._groups:
            self._groups[name] = self._repository.group_exists(name)
        return self._groups[name] and not isinstance(override.value(), dict)

    def _is_plain(self, override: Override) -> bool:
        group, option = override.key_or_group, override.value()
        changes = override.type == OverrideType.CHANGE and override.package is None
        # a group that Hydra does not choose from can take nothing's place
        known = group in self._defaults and isinstance(option, str)
        return changes and known and self._node(group, str(option)) is not None

    @cached_property
    def _defaults(self) -> Choices:
        return self._base([])[1]

    def _node(self, group: str, option: str) -> DictConfig | None:
        """The node of a plain option: its own content upon that of the options of its group that it names."""
        key = (group, option)
        if key not in self._nodes:
            self._nodes[key] = self._load(group, option)
        return self._nodes[key]

    def _load(self, group: str, option: str) -> DictConfig | None:
        found = self._repository.load_config(f"{group}/{option}")
        if found is None or found.header.get("package") is not None or not isinstance(found.config, DictConfig):
            return None
        parts: list[DictConfig] = []
        own_placed = False
        for default in found.defaults_list or []:
            if not isinstance(default, ConfigDefault):
                return None
            if default.path == "_self_":
                parts.append(found.config)
                own_placed = True
                continue
            if "/" in str(default.path) or default.package is not None:
                return None
            part = self._node(group, str(default.path))
            if part is None:
                return None
            parts.append(part)
        if not own_placed:
            parts.append(found.config)
        merged = OmegaConf.merge(*parts)
        assert isinstance(merged, DictConfig)
        return merged

    def _touched(self, choices: Choices) -> set[str]:
        """Groups whose nodes the chosen presets (options of the package `_global_`) write into."""
        touched: set[str] = set()
        for group, option in choices.items():
            if group.startswith("hydra/") or not isinstance(option, str):
                continue
            found = self._repository.load_config(f"{group}/{option}")
            if found is None or found.header.get("package") != "_global_":
                continue
            touched |= {str(key) for key in found.config}
            for default in found.defaults_list or []:
                if isinstance(default, GroupDefault) and not default.override:
                    touched |= set(choices)  # it brings files of its own: all is Hydra's
        return touched

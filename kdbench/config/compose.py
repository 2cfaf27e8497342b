"""Composing a configuration with Hydra from command-line overrides."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.groups import CONF, GROUPS, addable_methods, content, is_outside, options
from kdbench.config.networks import NETWORKS

CONFIG_ERRORS = (HydraException, OmegaConfBaseException)


def version_base() -> str | None:
    """What to pass as Hydra's `version_base`: 1.3 wants its version named, 1.4 deprecates the argument."""
    return "1.3" if hydra.__version__.startswith("1.3") else None


def register() -> None:
    """Tell Hydra of our plug-ins, and of the options that follow from a table: networks of both groups, `plus`."""
    _register_plugins()
    outside = [option for group in GROUPS for name in options(group) if is_outside(option := f"{group}/{name}")]
    for option in outside:
        content(option)  # refuses invalid YAML with file and line, which Hydra does not
    chosen = ", ".join(option.replace("/", "=") for option in outside if not option.rpartition("/")[2].startswith("_"))
    text = f"  From plugins: {chosen}\n" if chosen else ""
    OmegaConf.register_new_resolver("kdbench_plugins", lambda: text, replace=True)  # for --help
    store = ConfigStore.instance()
    sweeper = {"_target_": "hydra_plugins.kdbench.GridSweeper", "params": None}
    store.store(group="hydra/sweeper", name="kdbench", node=sweeper)
    networks = {name: {"name": name} for name in NETWORKS} | {name: {"source": name} for name in ("timm", "custom")}
    for group in ("student", "teacher"):
        for name, node in networks.items():
            # without Hydra's struct mode, so that student.kwargs.patch_size=4 needs no + for a new key
            kwargs = OmegaConf.create({}, flags={"struct": False})
            store.store(group=group, name=name, node={"defaults": ["_base", "_self_"], "kwargs": kwargs, **node})
    for method in addable_methods():
        store.store(group="plus", name=method, node={"defaults": [{f"/method@{method}": method}]})


@cache
def _register_plugins() -> None:
    """Hydra does not find our plug-ins by itself in an editable installation."""
    installed = Plugins.instance()  # looks for plug-ins, and would re-execute a module that is already imported
    from hydra_plugins.kdbench import GridSweeper, OutsideOptions

    installed.register(GridSweeper)
    installed.register(OutsideOptions)


def compose(overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Compose the configuration that these overrides mean, unchecked.

    Returns:
        (configuration without Hydra's own node, group -> chosen option).

    Raises:
        HydraException, OmegaConfBaseException: an override is wrong.
    """
    with hydra_at_conf():
        return without_hydra(hydra.compose("train", overrides=overrides, return_hydra_config=True))


@contextmanager
def hydra_at_conf() -> Iterator[ConfigLoader]:
    """Hydra's loader over `conf/` and our own options; a Hydra that was active before, a sweep's, is restored."""
    register()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base=version_base()):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = before


def without_hydra(cfg: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """A composed configuration without Hydra's own node, and group -> chosen option."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg, dict(choices)  # type: ignore[arg-type]

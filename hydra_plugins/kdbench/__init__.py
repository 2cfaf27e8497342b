"""What Hydra takes from kdbench as its plug-ins, which it looks for in `hydra_plugins` only."""

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OutsideOptions(SearchPathPlugin):
    """Lets Hydra find the options of kdbench's plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append their folders."""
        from kdbench.config import plugins

        for folder in plugins.conf_folders():
            search_path.append("kdbench-plugins", f"file://{folder}")


class GridSweeper(Sweeper):
    """Hydra's own grid, carried out by `kdbench.sweeps.sweep.Sweep`.

    Args:
        params: overrides of the grid that a preset gives; `kdbench.sweeps.grid` reads them from the configuration.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.hydra_context = self.config = self.launcher = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and make the launcher that the configuration names."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Carry out the grid; records are files, so nothing of use is returned.

        Args:
            arguments: the overrides of the jobs; `kdbench.sweeps.grid` reads them from the configuration.
        """
        from kdbench.sweeps.grid import Grid
        from kdbench.sweeps.sweep import Sweep

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        Sweep(Grid(self.hydra_context.config_loader, self.config), self.launcher).carry_out()
        return []

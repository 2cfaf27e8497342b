"""The door through which Hydra calls `kdbench.sweep`: it takes sweepers from `hydra_plugins` only."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class GridSweeper(BasicSweeper):
    """Hydra's own grid, carried out by `kdbench.sweep.Sweep`."""

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Carry out the grid; records are files, so nothing of use is returned.

        Args:
            arguments: the overrides of the jobs; `kdbench.grid` reads them from the configuration.
        """
        from kdbench.grid import Grid
        from kdbench.sweep import Sweep

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        Sweep(Grid(self.hydra_context.config_loader, self.config), self.launcher).carry_out()
        return []

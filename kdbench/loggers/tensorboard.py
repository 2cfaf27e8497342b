"""The TensorBoard mirror: event files in the run's directory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdbench.loggers.mirror import RunInfo, flat

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Event files in `tensorboard/`; the final numbers are the scalars `final/...`."""

    def __init__(self, options: Mapping[str, Any], run: RunInfo) -> None:
        self._directory = run.directory / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def _open(self, purge_step: int | None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._directory, purge_step=purge_step)

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        """Write the metrics of an epoch."""
        # purge: an earlier attempt may have logged epochs past the checkpoint that this one resumed from
        self._writer = self._writer or self._open(purge_step=epoch)
        self._epoch = epoch
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Write the numbers of the summary and close the files."""
        writer = self._writer or self._open(purge_step=None)
        for key, value in flat(summary):
            if isinstance(value, int | float):
                writer.add_scalar(f"final/{key}", value, self._epoch)
        writer.close()

"""The terminal: our own messages and tables on it, other libraries' advice off it."""

import logging
import warnings

from rich.console import Console
from rich.table import Table

log = logging.getLogger("kdbench")
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def show(table: Table, width: int = 160) -> None:
    """Print a table.

    Args:
        table: what to print.
        width: in characters, where the output is not a terminal, which has a width of its own.
    """
    wide = Console(
        markup=False, highlight=False, emoji=False
    )  # a cell may hold brackets, as in pip install kdbench[tensorboard]
    if not wide.is_terminal:
        wide.width = width
    wide.print(table)


class _ToConsole(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        console.print(prefix + self.format(record))


def show_messages() -> None:
    """Print the messages of kdbench's own log."""
    if not any(isinstance(handler, _ToConsole) for handler in log.handlers):
        log.addHandler(_ToConsole())
    log.setLevel(logging.INFO)
    log.propagate = False


def silence_lightning() -> None:
    """Keep Lightning's advice off the terminal; to be called after its import, which sets up its loggers."""
    for name in ("pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",
        r".*eval mode at the start of training.*",  # networks with frozen parts
        r".*but have no `validation_step`.*",  # validation is scored by fit.py
        r".*GPU available but not used.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)

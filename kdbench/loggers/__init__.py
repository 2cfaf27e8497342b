"""Mirrors of a run's record: W&B, CSV, TensorBoard or none, one module each.

The authoritative record is `metrics.jsonl` and `result.json` in the run's directory. A mirror receives the same numbers
once per epoch and can neither fail nor hang the run: its first error is logged as one warning and switches it off.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from kdbench.errors import UserError
from kdbench.loggers.csv import Csv
from kdbench.loggers.mirror import Guarded, Mirror, RunInfo
from kdbench.loggers.none import NoMirror
from kdbench.loggers.tensorboard import TensorBoard
from kdbench.loggers.wandb import WandB

_KINDS: dict[str, type[Mirror]] = {"wandb": WandB, "csv": Csv, "tensorboard": TensorBoard, "none": NoMirror}


def check(options: Mapping[str, Any]) -> None:
    """Refuse, before any training, a mirror that cannot work.

    Args:
        options: the `logger` group.

    Raises:
        UserError: the kind is unknown, or TensorBoard is not installed.
    """
    kind = options["kind"]
    if kind not in _KINDS:
        raise UserError(f"logger.kind={kind} is not allowed: it must be one of {', '.join(_KINDS)}")
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard needs a package: pip install kdbench[tensorboard]")


def start(options: Mapping[str, Any], run: RunInfo) -> Guarded:
    """Open the mirror that the `logger` group asks for.

    Args:
        options: the `logger` group, already checked.
        run: the run to mirror.
    """
    return Guarded(options["kind"], _KINDS[options["kind"]], options, run)

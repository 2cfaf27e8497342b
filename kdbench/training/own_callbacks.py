"""The user's own Lightning callbacks, named in `trainer.callbacks`."""

import copy
import inspect
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kdbench.config.frozen import plain
from kdbench.errors import UserError, one_line_of
from kdbench.records.source import module_of
from kdbench.training.trainer import make_trainer, unchanged_flags


def create(callbacks: Mapping[str, Any] | None) -> list[pl.Callback]:
    """The callbacks of `trainer.callbacks`, in the order of their names, and one that checks their states.

    Args:
        callbacks: by name `_target_`, the class, and its arguments; None for none.

    Raises:
        UserError: a class that cannot be imported, is no callback, takes other arguments or does not accept them.
    """
    own = {name: _create(f"trainer.callbacks.{name}", options) for name, options in sorted((callbacks or {}).items())}
    return [*own.values(), LoadableStates(own)] if own else []


def rehearse(options: Mapping[str, Any], directory: Path) -> None:
    """Refuse callbacks that cannot be made, or that kdbench's Trainer does not take.

    Args:
        options: the `trainer` group.
        directory: of the run; nothing is written.

    Raises:
        UserError: see above.
    """
    with refusing(), unchanged_flags():
        try:
            make_trainer(options, 1, directory, create(options["callbacks"]))
        except RuntimeError as error:  # two callbacks of a class whose states have the same key
            raise UserError(f"trainer.callbacks is not possible: {' '.join(str(error).split())}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Put in one line why Lightning's Trainer does not take a callback, such as one that needs a logger.

    Raises:
        UserError: see above.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer.callbacks is not possible: {' '.join(str(error).split())}") from error


def _create(key: str, options: Mapping[str, Any]) -> pl.Callback:
    target = options["_target_"]
    arguments = {name: value for name, value in options.items() if name != "_target_"}
    module = module_of(target)
    try:
        kind: Any = reduce(getattr, target.removeprefix(f"{module}.").split("."), import_module(module))
    except Exception as error:  # whatever the code of the module raises
        raise UserError(f"{key}._target_={target} cannot be imported: {one_line_of(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, pl.Callback)):
        raise UserError(f"{key}._target_={target} is not allowed: must be a subclass of pytorch_lightning.Callback")
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        place = f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
        raise UserError(f"{key}: {target} ({place}) takes other arguments: {error}") from error
    try:
        return kind(**copy.deepcopy(plain(arguments)))
    except Exception as error:  # whatever the user's class raises
        raise UserError(f"{key}: {one_line_of(error)}") from error


class LoadableStates(pl.Callback):
    """Refuses, in the first epoch, a state from which an interrupted run could not continue.

    Args:
        callbacks: the user's own, by name.
    """

    def __init__(self, callbacks: Mapping[str, pl.Callback]) -> None:
        self.waiting = dict(callbacks)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write every state and read it again, as a checkpoint would."""
        while self.waiting:
            name, callback = self.waiting.popitem()
            buffer = io.BytesIO()
            try:
                torch.save(callback.state_dict(), buffer)
                buffer.seek(0)
                torch.load(buffer, weights_only=True)
            except Exception as error:  # whatever pickle raises for what it cannot write or read
                raise UserError(
                    f"trainer.callbacks.{name} is not possible: its state_dict() must consist of tensors, numbers, "
                    f"strings, lists and dicts, which a checkpoint gives back safely ({type(error).__name__})"
                ) from error

"""A data set from a user's own reader, a function `read(root, **options)` given by its import path."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kdbench.config.rules import nearest
from kdbench.data.arrays import NAMES, Arrays
from kdbench.errors import UserError, one_line_of


def read(reader: str, root: str | None, options: Mapping[str, Any]) -> Arrays:
    """Call a reader.

    Args:
        reader: `package.module.function`.
        root: `dataset.root`, which the reader gets as a `Path`, or None.
        options: its keyword arguments.

    Returns:
        What it returned.

    Raises:
        UserError: there is no such function, it fails, or it returns something else.
    """
    function = _function(reader)
    place = None if root is None else Path(root).expanduser()
    try:
        inspect.signature(function).bind(place, **options)
    except TypeError as error:
        given = ", ".join(["root", *options])
        raise UserError(f"dataset.reader={reader}: cannot be called with ({given}): {error}") from error
    except ValueError:
        pass  # functions written in C have no signature
    try:
        arrays = function(place, **options)
    except Exception as error:
        raise UserError(f"dataset.reader={reader}: failed with {one_line_of(error)}") from error
    if not isinstance(arrays, tuple | list) or len(arrays) != len(NAMES):
        count = f" of {len(arrays)}" if isinstance(arrays, tuple | list) else ""
        raise UserError(
            f"dataset.reader={reader}: returned a {type(arrays).__name__}{count}; must return ({', '.join(NAMES)})"
        )
    for name, array in zip(NAMES, arrays, strict=True):
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise UserError(f"dataset.reader={reader}: returned a {kind} as {name}; must be a NumPy array")
    return Arrays(*arrays)


def _function(reader: str) -> Callable[..., Any]:
    module_name, _, name = reader.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in reader.split(".")):
        raise UserError(f"dataset.reader={reader}: must be package.module.function")
    module = _module(reader, module_name)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        state = "is not a function" if hasattr(module, name) else "does not exist"
        raise UserError(f"dataset.reader={reader}: {name} {state} in {module.__file__}{nearest(name, functions)}")
    return function


def _module(reader: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "put its folder on PYTHONPATH or install it"
            raise UserError(f"dataset.reader={reader}: there is no module {error.name}; {hint}") from error
        raise UserError(f"dataset.reader={reader}: cannot be imported: {one_line_of(error)}") from error
    except Exception as error:
        raise UserError(f"dataset.reader={reader}: cannot be imported: {one_line_of(error)}") from error

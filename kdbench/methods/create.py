"""From the options of a method to the method."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from hydra.utils import get_class

import kdbench
from kdbench.config.groups import file_of, method_options
from kdbench.errors import UserError, one_line_of
from kdbench.methods.machinery.module import DistillationModule


def create(options: Mapping[str, Any]) -> DistillationModule:
    """The method that a `method` group describes, not yet attached to networks.

    Args:
        options: `_target_`, the class, and its arguments.

    Raises:
        UserError: a plugin's class cannot be imported, is no method, or takes other arguments than its file gives.
    """
    target, arguments = options["_target_"], method_options(options)
    if target.startswith(f"{kdbench.__name__}."):
        return get_class(target)(**arguments)
    try:
        module, _, name = target.rpartition(".")
        method = getattr(import_module(module), name)
    except Exception as error:  # whatever a module from outside raises while it is imported
        raise UserError(f"method={options['name']}: {one_line_of(error)}") from error
    if not (isinstance(method, type) and issubclass(method, DistillationModule)):
        raise UserError(f"method={options['name']}: {target} does not derive from Method or MethodWithoutTeacher")
    try:
        inspect.signature(method).bind(**arguments)
    except TypeError as error:
        file = file_of(f"method/{options['name']}")
        raise UserError(f"{file} does not give what {target} takes: {error}") from error
    return method(**arguments)

"""From the options of a method to the method."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from kdbench.config.groups import METHOD_DECLARATIONS
from kdbench.methods.machinery.module import DistillationModule


def create(options: Mapping[str, Any]) -> DistillationModule:
    """The method that a `method` group describes, not yet attached to networks.

    Args:
        options: `_target_`, the class, and its arguments.
    """
    arguments = {key: value for key, value in options.items() if key not in METHOD_DECLARATIONS}
    return get_class(options["_target_"])(**arguments)

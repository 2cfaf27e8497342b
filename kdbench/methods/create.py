"""Creating a method from its options."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from kdbench.config.groups import method_options
from kdbench.methods.machinery.module import DistillationModule


def create(options: Mapping[str, Any]) -> DistillationModule:
    """The method that a `method` group describes, not yet attached to any network.

    Args:
        options: the class as `_target_`, and its arguments.
    """
    return get_class(options["_target_"])(**method_options(options))

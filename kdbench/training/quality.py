"""Whether a teacher is good enough. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from kdbench.errors import UserError


def check_teacher(accuracy: float, teacher: Mapping[str, Any]) -> None:
    """Refuse a teacher that is not good enough.

    Args:
        accuracy: on the test set, a fraction.
        teacher: the `teacher` group.

    Raises:
        UserError: `teacher.min_accuracy` is higher.
    """
    least, name = teacher["min_accuracy"], teacher["name"]
    if least is not None and accuracy < least:
        raise UserError(f"teacher {name} has test accuracy {accuracy:.4f}, below teacher.min_accuracy={least}")

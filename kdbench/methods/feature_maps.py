"""Which stage maps of student and teacher a feature method compares, and how their sizes are made equal."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import UserError
from kdbench.models.features import Shapes

Stages = Sequence[Any] | None


def pairs(stages: Stages, student: Shapes, teacher: Shapes, method: str, stem: bool = False) -> list[tuple[int, int]]:
    """Indices (student, teacher) of the maps that are compared, shallow to deep.

    Args:
        stages: indices from 0, the stem, negative ones counted from the deepest; one for both networks, or
            `[student, teacher]`. None: all after the first, aligned at the deepest, as many as both networks have;
            of a network with one map, that one.
        student: shapes of the student's features.
        teacher: shapes of the teacher's.
        method: for the messages.
        stem: whether None includes the first map too.

    Raises:
        UserError: a network without maps, or an index that is not there.
    """
    sizes = len(student.stages), len(teacher.stages)
    for size, who in zip(sizes, ("student", "teacher"), strict=True):
        if not size:
            raise UserError(f"{method} compares stage maps, and the {who} gives none")
    if stages is None:
        count = min(sizes) if stem else max(min(sizes) - 1, 1)
        return [(sizes[0] - i, sizes[1] - i) for i in range(count, 0, -1)]
    found = []
    for entry in stages:
        both = entry if isinstance(entry, Sequence) else (entry, entry)
        if len(both) != 2 or not all(type(i) is int for i in both):
            raise UserError(f"{method}.stages={list(stages)} is not allowed: an index, or [student, teacher], for each")
        for i, size, who in zip(both, sizes, ("student", "teacher"), strict=True):
            if not -size <= i < size:
                raise UserError(
                    f"{method}.stages={list(stages)} is not allowed: the {who} has {size} maps, 0 to {size - 1}"
                )
        found.append((both[0] % sizes[0], both[1] % sizes[1]))
    if not found:
        raise UserError(f"{method}.stages=[] is not allowed: it names no map")
    return found


def matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B,C,H,W) at the smaller height and width of both, by adaptive average pooling."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return pooled(first, size), pooled(second, size)


def pooled(maps: Tensor, size: tuple[int, int], how: str = "avg") -> Tensor:
    """Maps (B,C,H,W) at `size`, by adaptive `avg` or `max` pooling; themselves where they have it."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.adaptive_max_pool2d(maps, size) if how == "max" else F.adaptive_avg_pool2d(maps, size)

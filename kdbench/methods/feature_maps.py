"""Which stage maps of student and teacher a feature method compares, and how they are brought to the same size."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import UserError
from kdbench.models.features import Shapes

# The option `stages` of a method, described in `pairs`.
StageChoice = Sequence[Any] | None


def pairs(
    stages: StageChoice, student: Shapes, teacher: Shapes, method: str, stem: bool = False
) -> list[tuple[int, int]]:
    """Indices (student, teacher) of the maps that are compared, from shallow to deep.

    Args:
        stages: a list of entries, each one index for both networks or `[student, teacher]`. Indices count from 0, the
            stem; negative ones count back from the deepest map. None: all maps after the first that both networks
            have, aligned at the deepest; of a network with a single map, that one.
        student: shapes of the student's features.
        teacher: shapes of the teacher's features.
        method: its name, for messages.
        stem: whether None includes the first map, too.

    Raises:
        UserError: a network gives no maps, or has no map of such an index.
    """
    counts = len(student.stages), len(teacher.stages)
    for count, role in zip(counts, ("student", "teacher"), strict=True):
        if not count:
            raise UserError(f"{method} compares stage maps, and the {role} gives none")
    if stages is None:
        common = min(counts) if stem else max(min(counts) - 1, 1)
        return [(counts[0] - i, counts[1] - i) for i in range(common, 0, -1)]
    chosen = []
    for entry in stages:
        pair = entry if isinstance(entry, Sequence) else (entry, entry)
        if len(pair) != 2 or not all(type(i) is int for i in pair):
            raise UserError(
                f"{method}.stages={list(stages)} is not allowed: each entry must be an index or [student, teacher]"
            )
        for i, count, role in zip(pair, counts, ("student", "teacher"), strict=True):
            if not -count <= i < count:
                raise UserError(
                    f"{method}.stages={list(stages)} is not allowed: the {role} has {count} maps, 0 to {count - 1}"
                )
        chosen.append((pair[0] % counts[0], pair[1] % counts[1]))
    if not chosen:
        raise UserError(f"{method}.stages=[] is not allowed: it names no map")
    return chosen


def require_pixels(chosen: Sequence[tuple[int, int]], student: Shapes, teacher: Shapes, method: str) -> None:
    """Refuse a pair of maps that have only one pixel in common, for a loss that compares where in a map something is.

    Args:
        chosen: indices, as `pairs` returns them.
        student: shapes of the student's features.
        teacher: shapes of the teacher's features.
        method: its name, for messages.

    Raises:
        UserError: the smaller of two maps, or what both are pooled to, is 1x1.
    """
    for i, j in chosen:
        sizes = [student.stages[i][1:], teacher.stages[j][1:]]
        if all(min(sides) == 1 for sides in zip(*sizes, strict=True)):
            ours, theirs = ("x".join(map(str, size)) for size in sizes)
            raise UserError(
                f"{method} cannot compare stage map {i} of the student ({ours}) with {j} of the teacher ({theirs}): on "
                f"1x1 pixels its loss is always 0; {method}.stages=[...] chooses other maps"
            )


def matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B,C,H,W), average-pooled (adaptively) to the smaller height and width of the two."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return pooled(first, size), pooled(second, size)


def pooled(maps: Tensor, size: tuple[int, int], pooling: str = "avg") -> Tensor:
    """Maps (B,C,H,W), pooled to `size` by adaptive `avg` or `max` pooling; unchanged if they have it already."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.adaptive_max_pool2d(maps, size) if pooling == "max" else F.adaptive_avg_pool2d(maps, size)

"""Which stage maps of student and teacher are compared, and how their sizes are matched."""

import math

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.feature_maps import matched, pairs
from kdbench.models.features import Shapes


def literal_pooling(maps, height, width):
    """Entry (i, j): mean over the rows floor(iH/h) to ceil((i+1)H/h), and likewise over columns."""
    big_h, big_w = maps.shape[2:]
    out = torch.empty(*maps.shape[:2], height, width, dtype=maps.dtype)
    for i in range(height):
        for j in range(width):
            rows = range(i * big_h // height, math.ceil((i + 1) * big_h / height))
            columns = range(j * big_w // width, math.ceil((j + 1) * big_w / width))
            out[:, :, i, j] = sum(maps[:, :, r, c] for r in rows for c in columns) / (len(rows) * len(columns))
    return out


@pytest.mark.parametrize(("large", "small"), [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((8, 6), (4, 3)), ((8, 4), (4, 4))])
def test_the_larger_map_is_average_pooled(large, small):
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(2, 3, *large, generator=generator, dtype=torch.float64)
    b = torch.randn(2, 5, *small, generator=generator, dtype=torch.float64)
    expected = literal_pooling(a, *small)
    first, second = matched(a, b)
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(second, b)
    first, second = matched(b, a)
    assert torch.equal(first, b)
    torch.testing.assert_close(second, expected, rtol=1e-12, atol=1e-12)


def test_maps_of_one_size_stay_as_they_are():
    a, b = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 4, 6)
    first, second = matched(a, b)
    assert torch.equal(first, a)
    assert torch.equal(second, b)


def shapes(count):
    return Shapes([(8 * 2**i, 32 >> i, 32 >> i) for i in range(count)], 16, 10)


def chosen(stages, student, teacher):
    """The pairs for networks with so many maps."""
    return pairs(stages, shapes(student), shapes(teacher), "fitnet")


def test_by_default_every_map_after_the_stem():
    assert chosen(None, 4, 4) == [(1, 1), (2, 2), (3, 3)]


def test_by_default_maps_are_aligned_from_the_deepest():
    assert chosen(None, 4, 5) == [(1, 2), (2, 3), (3, 4)]
    assert chosen(None, 5, 4) == [(2, 1), (3, 2), (4, 3)]
    assert chosen(None, 2, 5) == [(1, 4)]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([2], [(2, 2)]),
        ([0, 1, 3], [(0, 0), (1, 1), (3, 3)]),
        ([-1], [(3, 4)]),
        ([-2, -1], [(2, 3), (3, 4)]),
        ([[1, 2], [3, 4]], [(1, 2), (3, 4)]),
        ([[-1, 0]], [(3, 0)]),
        ([[1, -1], 2], [(1, 4), (2, 2)]),
    ],
)
def test_stages_are_one_index_for_both_or_a_pair(stages, expected):
    assert chosen(stages, 4, 5) == expected


# a student of 4 maps, a teacher of 5
@pytest.mark.parametrize("stages", [[4], [5], [-5], [1, 4], [[4, 4]], [[3, 5]], [[-5, -5]], [[0, -6]]])
def test_an_index_out_of_range_is_refused(stages):
    with pytest.raises(UserError, match="fitnet"):
        pairs(stages, shapes(4), shapes(5), "fitnet")


@pytest.mark.parametrize("stages", [None, [-1], [[0, 0]]])
@pytest.mark.parametrize(("student", "teacher"), [(0, 4), (4, 0), (0, 0)])
def test_a_network_without_maps_is_refused(stages, student, teacher):
    with pytest.raises(UserError, match="fitnet"):
        pairs(stages, shapes(student), shapes(teacher), "fitnet")


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([], r"fitnet.stages=\[\] is not allowed"),
        ([[1, 2, 3]], r"fitnet.stages=\[\[1, 2, 3\]\] is not allowed: .*\[student, teacher\]"),
        (["2"], r"fitnet.stages=\['2'\] is not allowed: .*\[student, teacher\]"),
        ([7], r"fitnet.stages=\[7\] is not allowed: the student has 4 maps, 0 to 3"),
    ],
)
def test_the_message_names_the_key_and_what_is_allowed(stages, reason):
    with pytest.raises(UserError, match=reason):
        pairs(stages, shapes(4), shapes(5), "fitnet")

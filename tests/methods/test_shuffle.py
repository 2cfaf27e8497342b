"""Features of other samples: one permutation for all of them, of the whole batch or within each class."""

from collections import Counter

import pytest
import torch

from kdbench.methods.machinery.shuffle import shuffled
from kdbench.models.features import Features

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 5, 2])


def numbered(count=9):
    """Features whose values are the number of their sample."""
    number = torch.arange(count, dtype=torch.float64)
    stages = [number.view(-1, 1, 1, 1).expand(-1, c, s, s).clone() for c, s in ((2, 4), (3, 2))]
    return Features(stages, number.view(-1, 1).repeat(1, 6), number.view(-1, 1).repeat(1, 5))


def permutation(order, seed, labels=LABELS):
    """For each sample, the number of the sample whose features it has; all features must agree."""
    torch.manual_seed(seed)
    before = numbered(len(labels))
    after = shuffled(before, labels, order)
    assert isinstance(after, Features)
    index = after.logits[:, 0].long()
    for a, b in zip([*after.stages, *after[1:]], [*before.stages, *before[1:]], strict=True):
        assert torch.equal(a, b[index])
    return index.tolist()


def test_none_changes_nothing():
    assert permutation("none", 0) == list(range(9))


@pytest.mark.parametrize("order", ["batch", "class"])
def test_is_a_random_permutation(order):
    permutations = [permutation(order, seed) for seed in range(20)]
    assert all(sorted(index) == list(range(9)) for index in permutations)
    assert len({tuple(index) for index in permutations}) > 10
    assert permutations[0] == permutation(order, 0)


def test_class_stays_within_the_label():
    for seed in range(50):
        index = permutation("class", seed)
        assert torch.equal(LABELS[index], LABELS)
        assert index[7] == 7  # the only one of its label


def test_batch_crosses_the_labels():
    assert any(not torch.equal(LABELS[permutation("batch", seed)], LABELS) for seed in range(5))


@pytest.mark.parametrize(("order", "labels"), [("batch", [0, 1, 2]), ("class", [1, 1, 1])])
def test_every_permutation_is_equally_likely(order, labels):
    counts = Counter(tuple(permutation(order, seed, torch.tensor(labels))) for seed in range(600))
    assert len(counts) == 6
    assert all(65 < count < 135 for count in counts.values())  # 100 +- 9


def test_class_permutes_every_class_independently():
    # two pairs: all four combinations of swapped and not
    labels = torch.tensor([3, 1, 1, 3])
    counts = Counter(tuple(permutation("class", seed, labels)) for seed in range(400))
    assert set(counts) == {(0, 1, 2, 3), (3, 1, 2, 0), (0, 2, 1, 3), (3, 2, 1, 0)}
    assert all(65 < count < 135 for count in counts.values())  # 100 +- 9


@pytest.mark.parametrize("order", ["none", "batch", "class"])
def test_one_sample_and_no_stages(order):
    ones = torch.ones(1, 3)
    after = shuffled(Features([], ones, ones), torch.tensor([4]), order)
    assert after.stages == []
    assert torch.equal(after.logits, ones)
    assert torch.equal(after.embedding, ones)


@pytest.mark.parametrize("order", ["none", "batch", "class"])
def test_needs_no_values(order):
    before = Features(*([s.to("meta") for s in numbered().stages], *(x.to("meta") for x in numbered()[1:])))
    after = shuffled(before, LABELS.to("meta"), order)
    assert [s.shape for s in after.stages] == [s.shape for s in before.stages]
    assert (after.embedding.shape, after.logits.shape) == ((9, 6), (9, 5))


@pytest.mark.parametrize("order", ["batch", "class"])
def test_large_labels_do_not_mix(order):
    labels = torch.tensor([999, 998, 999, 998, 0, 999] * 50)
    index = permutation(order, 0, labels)
    assert sorted(index) == list(range(300))
    assert torch.equal(labels[index], labels) == (order == "class")

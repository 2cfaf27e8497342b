"""Features of another sample: the same permutation for all of them, of the batch or within each class."""

from collections import Counter

import pytest
import torch

from kdbench.methods.base import shuffled
from kdbench.models.features import Features

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 5, 2])


def numbered(count=9):
    """Features of which each says whose they are."""
    own = torch.arange(count, dtype=torch.float64)
    stages = [own.view(-1, 1, 1, 1).expand(-1, c, s, s).clone() for c, s in ((2, 4), (3, 2))]
    return Features(stages, own.view(-1, 1).repeat(1, 6), own.view(-1, 1).repeat(1, 5))


def source(how, seed, labels=LABELS):
    """Whose features each sample has, which all of them agree on."""
    torch.manual_seed(seed)
    before = numbered(len(labels))
    made = shuffled(before, labels, how)
    assert isinstance(made, Features)
    order = made.logits[:, 0].long()
    for a, b in zip([*made.stages, *made[1:]], [*before.stages, *before[1:]], strict=True):
        assert torch.equal(a, b[order])
    return order.tolist()


def test_none_changes_nothing():
    assert source("none", 0) == list(range(9))


@pytest.mark.parametrize("how", ["batch", "class"])
def test_is_a_permutation_that_changes(how):
    found = [source(how, seed) for seed in range(20)]
    assert all(sorted(order) == list(range(9)) for order in found)
    assert len({tuple(order) for order in found}) > 10
    assert found[0] == source(how, 0)


def test_class_stays_within_the_label():
    for seed in range(50):
        order = source("class", seed)
        assert torch.equal(LABELS[order], LABELS)
        assert order[7] == 7  # the only one of its label


def test_batch_crosses_the_labels():
    assert any(not torch.equal(LABELS[source("batch", seed)], LABELS) for seed in range(5))


@pytest.mark.parametrize(("how", "labels"), [("batch", [0, 1, 2]), ("class", [1, 1, 1])])
def test_every_permutation_is_as_likely(how, labels):
    counts = Counter(tuple(source(how, seed, torch.tensor(labels))) for seed in range(600))
    assert len(counts) == 6
    assert all(65 < count < 135 for count in counts.values())  # 100 +- 9


def test_class_permutes_every_class_by_itself():
    # two pairs: all four combinations of swapped and not
    labels = torch.tensor([3, 1, 1, 3])
    counts = Counter(tuple(source("class", seed, labels)) for seed in range(400))
    assert set(counts) == {(0, 1, 2, 3), (3, 1, 2, 0), (0, 2, 1, 3), (3, 2, 1, 0)}
    assert all(65 < count < 135 for count in counts.values())  # 100 +- 9


@pytest.mark.parametrize("how", ["none", "batch", "class"])
def test_one_sample_and_no_stages(how):
    own = torch.ones(1, 3)
    made = shuffled(Features([], own, own), torch.tensor([4]), how)
    assert made.stages == []
    assert torch.equal(made.logits, own)
    assert torch.equal(made.embedding, own)


@pytest.mark.parametrize("how", ["none", "batch", "class"])
def test_needs_no_values(how):
    before = Features(*([s.to("meta") for s in numbered().stages], *(x.to("meta") for x in numbered()[1:])))
    made = shuffled(before, LABELS.to("meta"), how)
    assert [s.shape for s in made.stages] == [s.shape for s in before.stages]
    assert (made.embedding.shape, made.logits.shape) == ((9, 6), (9, 5))


@pytest.mark.parametrize("how", ["batch", "class"])
def test_large_labels_do_not_mix(how):
    labels = torch.tensor([999, 998, 999, 998, 0, 999] * 50)
    order = source(how, 0, labels)
    assert sorted(order) == list(range(300))
    assert torch.equal(labels[order], labels) == (how == "class")

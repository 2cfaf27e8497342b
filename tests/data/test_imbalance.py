import re
from itertools import product

import numpy as np
import pytest

from kdbench.data import imbalance
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import group, module, symmetric

RNG = np.random.default_rng(0)
# training labels as in CIFAR-10 and CIFAR-100, in random order
CIFAR = {k: RNG.permutation(np.repeat(np.arange(k), 50_000 // k)) for k in (10, 100)}


def kept(num_classes, name, **changes):
    """Number of images of each class that are kept of a training set like CIFAR's."""
    labels = CIFAR[num_classes]
    index = imbalance.subset(labels, group("imbalance", name, **changes))
    assert (np.diff(index) > 0).all()
    return np.bincount(labels[index], minlength=num_classes)


def test_no_imbalance_keeps_everything():
    labels = CIFAR[10]
    assert np.array_equal(imbalance.subset(labels, group("imbalance", "none")), np.arange(len(labels)))


@pytest.mark.parametrize(
    ("num_classes", "factor", "total", "smallest", "shots"),
    [
        (100, 200, 9502, 2, (30, 31, 39)),
        (100, 100, 10847, 5, (35, 35, 30)),
        (100, 50, 12608, 10, (41, 41, 18)),
        (100, 20, 15907, 25, None),
        (100, 10, 19573, 50, (69, 31, 0)),
        (10, 200, 11203, 25, None),
        (10, 100, 12406, 50, None),
        (10, 50, 13996, 100, None),
        (10, 20, 17023, 250, None),
        (10, 10, 20431, 500, None),
    ],
)
def test_long_tails_have_the_published_counts(num_classes, factor, total, smallest, shots):
    counts = kept(num_classes, "longtail", factor=factor)
    assert (counts.sum(), counts[0], counts[-1]) == (total, 50_000 // num_classes, smallest)
    assert (np.diff(counts) <= 0).all()
    if shots:
        assert tuple(imbalance.shots(counts).values()) == shots


def test_steps_have_the_published_counts():
    assert kept(100, "step", factor=100).tolist() == [500] * 50 + [5] * 50  # 25,250
    assert kept(10, "step", factor=100).tolist() == [5000] * 5 + [50] * 5
    assert imbalance.counts(group("imbalance", "step", factor=2), 5, 10).tolist() == [10, 10, 10, 5, 5]


@pytest.mark.parametrize(
    ("gamma", "counts", "total"),
    [
        (0.2, [5000, 858, 557, 439, 375, 333, 304, 282, 264, 250], 8662),
        (0.6, [5000, 1166, 720, 539, 440, 376, 331, 297, 271, 250], 9390),
        (1, [5000, 1607, 957, 682, 529, 433, 366, 317, 280, 250], 10421),
        (2, [5000, 3173, 1972, 1289, 892, 648, 490, 382, 306, 250], 14402),
        (10, [5000, 5000, 4999, 4990, 4909, 4485, 3254, 1645, 656, 250], 35188),
    ],
)
def test_power_laws_have_the_counts_of_the_paper(gamma, counts, total):
    assert kept(10, "power_law", gamma=gamma).tolist() == counts
    assert sum(counts) == total


def test_the_power_law_ends_at_n_min_whatever_the_number_of_classes():
    counts = kept(100, "power_law", gamma=1, n_min=25)
    assert (counts[0], counts[-1]) == (500, 25)
    assert kept(10, "power_law", n_max=250).tolist() == [250] * 10


def test_given_counts_are_kept():
    counts = [1, 5000, 3, 4, 5, 6, 7, 8, 9, 10]
    assert kept(10, "counts", counts=counts).tolist() == counts


@pytest.mark.parametrize(
    ("n_max", "factor"), [*product([None], [1, 1.5, 49, 1000, 5000]), *product([4900], [1, 1.5, 49, 1000])]
)
def test_the_factor_is_the_largest_class_over_the_smallest(factor, n_max):
    counts = kept(10, "longtail", factor=factor, n_max=n_max)
    assert (counts[0], counts[-1]) == (n_max or 5000, int((n_max or 5000) / factor))


def test_images_are_the_first_of_each_class_or_drawn_by_their_own_seed():
    labels = CIFAR[10]
    first = imbalance.subset(labels, group("imbalance", "power_law"))
    for label, count in enumerate(np.bincount(labels[first])):
        assert np.array_equal(first[labels[first] == label], np.flatnonzero(labels == label)[:count])
    drawn, again, other_seed, smaller = (
        imbalance.subset(labels, group("imbalance", "longtail", seed=seed, factor=factor))
        for seed, factor in ((0, 50), (0, 50), (1, 50), (0, 100))
    )
    assert np.array_equal(drawn, again)
    assert not np.array_equal(drawn, other_seed)
    assert set(smaller) < set(drawn)


def test_subsets_come_before_noise_and_are_the_same_for_every_run():
    tail = group("imbalance", "longtail", factor=10)
    clean, noisy, other_seed = (
        module("digits", imbalance=tail, noise=noise, seed=seed)
        for noise, seed in ((None, 0), (symmetric(rate=0.5), 0), (None, 7))
    )
    assert np.array_equal(clean.train_index, noisy.train_index)
    assert np.array_equal(clean.train_labels, noisy.true_labels)
    assert clean.labels_hash == other_seed.labels_hash
    record = noisy.imbalance_record
    assert record["class_counts"] == imbalance.counts(tail, 10, max(record["class_counts"])).tolist()
    assert sum(record["class_counts"]) == noisy.train_size + noisy.val_size
    assert sum(record["shots"].values()) == 10
    assert record["realised_factor"] == pytest.approx(10, rel=0.1)
    assert noisy.test_size == module("digits").test_size
    assert noisy.noise_record["true_class_counts"] != noisy.noise_record["class_counts"]


REFUSED = {
    "imbalance=longtail imbalance.factor=0.5": ["imbalance.factor=0.5", ">= 1"],
    "imbalance=step imbalance.factor=0": ["imbalance.factor=0", ">= 1"],
    "imbalance=longtail imbalance.n_max=50": ["imbalance.factor=100", "without images", "<= 50"],
    "imbalance=step imbalance.n_max=99": ["imbalance.factor=100", "class 5 without images"],
    "imbalance=longtail imbalance.n_max=0": ["imbalance.n_max=0", "int > 0"],
    "imbalance=power_law imbalance.gamma=0": ["imbalance.gamma=0", "(0, 50]"],
    "imbalance=power_law imbalance.n_min=0": ["imbalance.n_min=0", "int > 0"],
    "imbalance=power_law imbalance.n_max=100": ["imbalance.n_min=250", "[1, 100]"],
    "imbalance=power_law imbalance.pick=last": ["imbalance.pick=last", "first, random"],
    "imbalance=counts": ["imbalance.counts=null", "imbalance.counts=["],
    "imbalance=counts imbalance.counts=[1,2,3]": ["imbalance.counts", "3 values", "10"],
    "imbalance=counts imbalance.counts=[1,1,1,1,0,1,1,1,1,1]": ["class 4 has 0", "int >= 1"],
    "imbalance=counts imbalance.counts=[1,1,1,1,1.5,1,1,1,1,1]": ["class 4 has 1.5", "int >= 1"],
    "imbalance=none imbalance.name=step": ["imbalance.name=step", "imbalance=step"],
    "imbalance=none imbalance.name=some": ["imbalance.name=some", "imbalance=none fixes it at none"],
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_impossible_imbalance_is_refused_in_one_line_before_anything_is_loaded(overrides):
    with pytest.raises(UserError) as error:
        spec_of(["dataset=digits", *overrides.split()])
    assert all(part in str(error.value) for part in REFUSED[overrides])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("some", "imbalance.name=some: must be one of none, longtail"), ("step", "imbalance.factor is missing")],
)
def test_an_unknown_kind_and_a_missing_key_are_refused(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        imbalance.check({"name": name})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("longtail", {"n_max": 5001}, r"imbalance\.n_max=5001: class 0 has only 5000"),
        ("counts", {"counts": [1] * 9 + [5001]}, r"imbalance\.counts\[9\]=5001: class 9 has only 5000"),
        ("longtail", {"factor": 5001}, r"imbalance\.factor=5001: leaves class 9 without images"),
        ("power_law", {"n_min": 5001}, r"imbalance\.n_min=5001: must be in \[1, 5000\]"),
    ],
)
def test_more_images_than_a_class_has_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        kept(10, name, **changes)

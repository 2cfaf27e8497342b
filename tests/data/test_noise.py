"""The kinds of label noise: which options are refused, and how often each label becomes which."""

import numpy as np
import pytest

from kdbench.data import noise
from kdbench.errors import UserError
from tests.helpers.data import group, module, symmetric

LABELS = np.arange(50_000) % 10
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = sorted(noise.MAPS["cifar100"])
# five standard deviations, or more, of a rate measured on all LABELS, and on those of one class
TOLERANCE = 2.5 / np.sqrt(50_000)
CLASS_TOLERANCE = 2.5 / np.sqrt(5_000)


def source(labels=LABELS, classes=tuple(CIFAR10), reader="cifar10", pixels=None):
    return noise.Source(reader, classes, labels, np.arange(len(labels)), pixels)


def transitions(noisy, labels=LABELS, num_classes=10):
    """Shares of the noisy labels (columns) in each true class (rows)."""
    counts = noise.record({"name": "x"}, labels, noisy, num_classes)["transition"]
    return np.array(counts) / np.bincount(labels)[:, None]


@pytest.mark.parametrize(
    ("choice", "changes", "parts"),
    [
        ("none", {"rate": 0.4}, ["noise.rate=0.4", "noise=symmetric"]),
        ("symmetric", {"rate": 1.5}, ["noise.rate=1.5", "[0, 1]"]),
        ("none", {"rate": None}, ["noise.rate=null", "noise=symmetric"]),
        ("symmetric", {"rate": None}, ["noise.rate=null", "[0, 1]"]),
        ("symmetric", {"name": "pairs"}, ["noise.name=pairs", "none, symmetric"]),
        ("symmetric", {"name": "file"}, ["noise.name=file", "noise.path", "noise=file"]),
        ("pairflip", {"rate": -0.1}, ["noise.rate=-0.1", "[0, 1]"]),
        ("asymmetric", {"matrix": "m.npy"}, ["noise.rate=0.4", "noise.rate=null", "matrix"]),
        ("asymmetric", {"rate": None}, ["noise.rate=null", "[0, 1]"]),
        ("file", {}, ["noise.path=null", "noise=file"]),
        ("human", {}, ["noise.path=null", "noise=human"]),
        ("human", {"path": "x.pt", "rate": 0.2}, ["noise.rate=0.2", "noise.rate=null", "labels"]),
        ("human", {"path": "x.npz", "annotation": "best"}, ["noise.annotation=best", "worst"]),
    ],
)
def test_impossible_options_are_refused(choice, changes, parts):
    with pytest.raises(UserError) as error:
        noise.check(group("noise", choice, **changes))
    assert all(part in str(error.value) for part in parts)


def test_no_noise_is_a_copy():
    noisy = noise.corrupt(LABELS, 10, group("noise", "none"))
    assert np.array_equal(noisy, LABELS)
    assert noisy is not LABELS


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize(("include_true", "share"), [(False, 1.0), (True, 0.9)])
def test_symmetric_noise_has_its_rate_and_makes_all_other_classes_equally_likely(rate, include_true, share):
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=rate, include_true=include_true))
    changed = noisy != LABELS
    assert abs(changed.mean() - rate * share) < 0.01  # four standard deviations are below 0.009
    moves = np.bincount((noisy - LABELS)[changed] % 10, minlength=10)
    assert moves[0] == 0
    assert np.abs(moves[1:] / changed.sum() - 1 / 9).max() < 0.013
    assert noisy.dtype == np.int64
    assert noisy.min() == 0
    assert noisy.max() == 9


def test_rate_1_keeps_no_label_or_one_in_k():
    assert (noise.corrupt(LABELS, 10, symmetric(rate=1.0)) != LABELS).all()
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=1.0, include_true=True))
    assert abs((noisy == LABELS).mean() - 0.1) < 0.006


def test_two_classes_swap():
    labels = np.array([0, 1, 1, 0])
    assert np.array_equal(noise.corrupt(labels, 2, symmetric(rate=1.0)), 1 - labels)


def test_noise_depends_on_its_own_seed_and_grows_with_the_rate():
    noisy, again = (noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=1)) for _ in range(2))
    other_seed = noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=2))
    less_noisy = noise.corrupt(LABELS, 10, symmetric(rate=0.2, seed=1))
    assert np.array_equal(noisy, again)
    assert not np.array_equal(noisy, other_seed)
    changed = less_noisy != LABELS
    assert np.array_equal(less_noisy[changed], noisy[changed])


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 1.0])
def test_pairflip_goes_to_the_next_class(rate):
    noisy = noise.corrupt(LABELS, 10, group("noise", "pairflip", rate=rate))
    expected = (1 - rate) * np.eye(10) + rate * np.roll(np.eye(10), 1, axis=1)
    assert np.abs(transitions(noisy) - expected).max() < CLASS_TOLERANCE
    assert abs((noisy != LABELS).mean() - rate) < TOLERANCE


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_asymmetric_noise_on_cifar10(rate):
    noisy = noise.corrupt(LABELS, 10, group("noise", "asymmetric", rate=rate), source())
    expected = np.eye(10)
    for true, label in ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3)):
        expected[true, true] -= rate
        expected[true, label] += rate
    assert np.abs(transitions(noisy) - expected).max() < CLASS_TOLERANCE
    assert abs((noisy != LABELS).mean() - rate / 2) < TOLERANCE


def test_asymmetric_noise_on_cifar100_goes_to_the_next_class_of_the_superclass():
    labels = np.arange(50_000) % 100
    config = group("noise", "asymmetric", rate=1.0)
    noisy = noise.corrupt(labels, 100, config, source(labels, tuple(CIFAR100), "cifar100"))
    moves = dict(zip(labels.tolist(), noisy.tolist(), strict=True))
    named = {CIFAR100[a]: CIFAR100[b] for a, b in moves.items()}
    assert [named[name] for name in ("beaver", "seal", "whale", "apple", "sweet_pepper", "lawn_mower", "tractor")] == [
        "dolphin", "whale", "beaver", "mushroom", "apple", "rocket", "lawn_mower"]  # fmt: skip
    assert sorted(moves.values()) == list(range(100))
    for start in range(100):  # cycles of five
        label, cycle = start, set()
        while label not in cycle:
            cycle.add(label)
            label = moves[label]
        assert (len(cycle), label) == (5, start)
    noisy = noise.corrupt(labels, 100, {**config, "rate": 0.3}, source(labels, tuple(CIFAR100), "cifar100"))
    assert abs((noisy != labels).mean() - 0.3) < TOLERANCE


def test_the_class_map_uses_names_and_the_message_tells_which_is_missing():
    with pytest.raises(UserError, match=r"noise\.matrix=null.*no class is called airplane"):
        noise.corrupt(LABELS, 10, group("noise", "asymmetric"), source(classes=tuple("abcdefghij")))
    with pytest.raises(UserError, match=r"noise\.matrix=null: only cifar10, cifar100.*dataset\.source=digits"):
        module("digits", noise=group("noise", "asymmetric"))


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_transitions_follow_the_given_matrix(tmp_path, suffix):
    matrix = np.random.default_rng(0).dirichlet(np.ones(10), 10)
    matrix[3] = np.eye(10)[3]  # a class that stays
    matrix[4] = np.eye(10)[7]  # and one that always changes
    path = tmp_path / f"matrix.{suffix}"
    np.save(path, matrix) if suffix == "npy" else np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    noisy = noise.corrupt(LABELS, 10, group("noise", "asymmetric", rate=None, matrix=str(path)))
    assert np.abs(transitions(noisy) - matrix).max() < CLASS_TOLERANCE
    assert (noisy[LABELS == 3] == 3).all()
    assert (noisy[LABELS == 4] == 7).all()


def test_instance_noise_has_its_rate_and_grows_with_it():
    pixels = np.random.default_rng(0).normal(size=(len(LABELS), 12))
    images = source(pixels=lambda positions: pixels[positions])
    config = group("noise", "instance", rate=0.4)
    noisy = noise.corrupt(LABELS, 10, config, images)
    assert abs((noisy != LABELS).mean() - 0.4) < TOLERANCE
    assert np.array_equal(noisy, noise.corrupt(LABELS, 10, config, images))
    assert not np.array_equal(noisy, noise.corrupt(LABELS, 10, {**config, "seed": 1}, images))
    assert np.array_equal(noise.corrupt(LABELS, 10, {**config, "rate": 0.0}, images), LABELS)
    less_noisy = noise.corrupt(LABELS, 10, {**config, "rate": 0.2}, images)
    changed = less_noisy != LABELS
    truncated_mean = 0.2 + 0.1 * np.exp(-2) / np.sqrt(2 * np.pi) / 0.97725
    assert abs(changed.mean() - truncated_mean) < TOLERANCE
    assert np.array_equal(less_noisy[changed], noisy[changed])


def test_instance_noise_depends_on_the_image_and_the_class():
    # equal images of one class get the same label where the softmax is sharp; each class has its own projection
    equal_images = source(pixels=lambda positions: np.full((len(positions), 12), 20.0))
    config = group("noise", "instance", rate=0.4)
    moved = transitions(noise.corrupt(LABELS, 10, config, equal_images))
    np.fill_diagonal(moved, 0)
    assert moved.max(axis=1) == pytest.approx(moved.sum(axis=1), rel=0.05)
    assert len(set((moved.argmax(axis=1) - np.arange(10)).tolist())) > 2
    # rates of single images have standard deviation 0.1: around 0.5 they are hardly truncated
    assert abs((noise.corrupt(LABELS, 10, {**config, "rate": 0.5}, equal_images) != LABELS).mean() - 0.5) < TOLERANCE

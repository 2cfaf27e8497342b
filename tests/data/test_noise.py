import numpy as np
import pytest
from datatools import group, module, symmetric

from kdbench.data import imbalance, noise
from kdbench.errors import UserError

LABELS = np.arange(50_000) % 10


def test_no_noise_is_a_copy():
    noisy = noise.corrupt(LABELS, 10, group("noise", "none"))
    assert np.array_equal(noisy, LABELS)
    assert noisy is not LABELS


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize(("include_true", "share"), [(False, 1.0), (True, 0.9)])
def test_the_rate_is_the_rate_and_every_other_class_is_as_likely(rate, include_true, share):
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=rate, include_true=include_true))
    changed = noisy != LABELS
    assert abs(changed.mean() - rate * share) < 0.01  # four standard deviations are below 0.009
    moves = np.bincount((noisy - LABELS)[changed] % 10, minlength=10)
    assert moves[0] == 0
    assert np.abs(moves[1:] / changed.sum() - 1 / 9).max() < 0.013
    assert noisy.dtype == np.int64
    assert noisy.min() == 0
    assert noisy.max() == 9


def test_rate_one_leaves_no_label_or_a_chance_of_one_in_k():
    assert (noise.corrupt(LABELS, 10, symmetric(rate=1.0)) != LABELS).all()
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=1.0, include_true=True))
    assert abs((noisy == LABELS).mean() - 0.1) < 0.006


def test_two_classes_swap():
    labels = np.array([0, 1, 1, 0])
    assert np.array_equal(noise.corrupt(labels, 2, symmetric(rate=1.0)), 1 - labels)


def test_noise_depends_on_its_own_seed_and_grows_with_the_rate():
    one, again = (noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=1)) for _ in range(2))
    other = noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=2))
    less = noise.corrupt(LABELS, 10, symmetric(rate=0.2, seed=1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    hit = less != LABELS
    assert np.array_equal(less[hit], one[hit])


def test_the_run_seed_changes_no_label_and_the_test_set_stays_clean():
    clean = module("digits")
    runs = [module("digits", noise=symmetric(rate=0.5), seed=seed) for seed in (0, 1)]
    assert runs[0].labels_hash == runs[1].labels_hash != clean.labels_hash
    assert np.array_equal(runs[0].train_labels, runs[1].train_labels)
    assert np.array_equal(runs[0].train_index, clean.train_index)  # the same images are held out
    assert np.array_equal(runs[0].true_labels, clean.train_labels)
    for loader in ("test_dataloader", "val_dataloader"):
        noisy, plain = ([b.labels for b in getattr(m, loader)()] for m in (runs[0], clean))
        flipped = np.mean([(a != b).float().mean().item() for a, b in zip(noisy, plain, strict=True)])
        assert flipped == 0 if loader == "test_dataloader" else flipped > 0.3


def test_the_record_says_what_came_of_the_noise():
    data = module("digits", noise=symmetric(rate=0.5))
    flipped = int((data.train_labels != data.true_labels).sum())
    assert data.noise_record["flipped"] == flipped
    assert data.noise_record["realised_rate"] == flipped / data.train_size
    assert abs(data.noise_record["realised_rate"] - 0.5) < 0.06
    assert data.noise_record["name"] == "symmetric"
    assert data.noise_record["rate"] == 0.5


@pytest.mark.parametrize(
    ("choice", "changes", "words"),
    [
        ("none", {"rate": 0.4}, ["noise.rate=0.4", "noise=symmetric"]),
        ("symmetric", {"rate": 1.5}, ["noise.rate=1.5", "[0, 1]"]),
        ("symmetric", {"name": "pairs"}, ["noise.name=pairs", "none, symmetric"]),
    ],
)
def test_wrong_noise_is_refused_before_anything_is_loaded(choice, changes, words):
    with pytest.raises(UserError) as error:
        noise.check(group("noise", choice, **changes))
    assert all(word in str(error.value) for word in words)


def test_no_imbalance_keeps_everything_and_other_kinds_are_refused():
    assert np.array_equal(imbalance.subset(LABELS, group("imbalance", "none")), np.arange(len(LABELS)))
    with pytest.raises(UserError, match=r"imbalance\.name=step"):
        imbalance.check({"name": "step"})

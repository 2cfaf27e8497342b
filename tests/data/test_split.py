import numpy as np
import pytest

from kdbench.data.split import stratified
from tests.helpers.data import module

LABELS = np.repeat([0, 1, 2, 3], [200, 50, 4, 1])


def test_parts_are_disjoint_complete_ascending_and_stratified():
    kept, held_out = stratified(LABELS, 0.1, seed=0)
    assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(len(LABELS)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert np.bincount(LABELS[held_out], minlength=4).tolist() == [20, 5, 0, 0]


@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_every_class_keeps_a_training_sample(fraction):
    kept, _ = stratified(LABELS, fraction, seed=0)
    assert set(LABELS[kept]) == {0, 1, 2, 3}


def test_fraction_zero_holds_out_nothing():
    kept, held_out = stratified(LABELS, 0.0, seed=0)
    assert len(kept) == len(LABELS)
    assert len(held_out) == 0


def test_the_split_depends_on_its_own_seed_only():
    assert np.array_equal(stratified(LABELS, 0.2, seed=1)[1], stratified(LABELS, 0.2, seed=1)[1])
    assert not np.array_equal(stratified(LABELS, 0.2, seed=1)[1], stratified(LABELS, 0.2, seed=2)[1])
    first, second = (module("digits", seed=seed).train_index for seed in (0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, module("digits", split_seed=1).train_index)

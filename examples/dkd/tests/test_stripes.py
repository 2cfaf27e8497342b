"""The reader: what it draws, the option that names it, and what of it is in the identity of a run."""

import numpy as np
import pytest
from kdbench_dkd.stripes import DIRECTIONS, read

from kdbench.config.groups import header, options
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of

WORDS = ["method=ce", "dataset=stripes", "student=resnet8", "dataset.options.train=40", "dataset.options.test=20"]


def test_sizes_types_and_classes():
    x_train, y_train, x_test, y_test = read(None, train=40, test=20, size=6)
    assert (x_train.shape, x_train.dtype, x_test.shape) == ((40, 6, 6), np.uint8, (20, 6, 6))
    assert np.bincount(y_train).tolist() == [10] * 4
    assert np.bincount(y_test).tolist() == [5] * 4


def test_without_noise_brightness_changes_only_across_the_stripes():
    images, labels, _, _ = read(None, train=40, test=4, size=12, noise=0.0)
    for image, label in zip(images.astype(int), labels, strict=True):
        right, down = DIRECTIONS[label]
        along = np.roll(image, (right, -down), axis=(0, 1))  # one step at a right angle to the direction
        assert np.array_equal(along[1:-1, 1:-1], image[1:-1, 1:-1])
        assert image.std() > 30


def test_the_same_options_give_the_same_images_and_another_seed_others():
    first, again, other = (read(None, train=8, test=8, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[2])  # the test set is drawn anew


@pytest.mark.parametrize(("root", "count", "reason"), [("x", 8, "root=x must be null"), (None, 3, "must both be >= 4")])
def test_what_it_cannot_draw_is_refused(root, count, reason):
    with pytest.raises(ValueError, match=reason):
        read(root, train=count)


def test_kdbench_finds_it_and_its_options_are_part_of_the_identity():
    assert "stripes" in options("dataset")
    assert header("dataset/stripes")["what"]
    spec = spec_of(WORDS)
    assert spec.name == "ce-resnet8-stripes-s0"
    assert (spec.sizes.num_classes, spec.sizes.in_chans, spec.sizes.image_size) == (4, 1, 8)
    assert spec_of([*WORDS, "dataset.options.seed=1"]).id != spec.id
    assert spec_of([*WORDS, "dataset.options.size=10"]).sizes.image_size == 10


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("dataset.options.noise=-1", "must be float >= 0"),
        ("dataset.options.sise=12", "nearest: dataset.options.size"),
        ("dataset.reader=a.b", "dataset=stripes fixes it"),
        ("dataset.root=/tmp", "must be null: nothing is read"),
    ],
)
def test_options_that_are_not_possible_are_refused(override, reason):
    with pytest.raises(UserError, match=reason):
        spec_of([*WORDS, override])

"""Mixup and CutMix: images, labels and shares of mixed batches, and the statistics of what is drawn."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from kdbench.data.batch import Batch, Mixed
from kdbench.data.mixing import Mixing
from kdbench.data.resident import ResidentLoader
from tests.helpers.data import module

CPU = torch.device("cpu")
OPTIONS = {"image_size": 8, "num_train": 256, "val_fraction": 0.0, "workers": 0}


def batches_of(size=8, count=16, number=5):
    generator = torch.Generator().manual_seed(0)
    for step in range(number):
        images = torch.rand(count, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (count,), generator=generator)
        yield Batch(images, labels, torch.arange(count) + step * count)


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_have_their_distribution(alpha):
    shares = Mixing(alpha, 0, 8, 0, CPU).draw(0, 4000, 2).shares
    assert abs(shares.mean() - 0.5) < 0.02
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_boxes_of_cutmix_are_those_of_the_paper():
    size, count = 64, 20_000
    draws = Mixing(0, 1.0, size, 0, CPU).draw(0, count, 2)
    assert draws.cut.all()
    assert draws.boxes.min() >= 0
    assert draws.boxes.max() <= size
    # uniform shares, a uniform centre, clipping: expected sides, by a simulation of the definition for one axis
    rng = np.random.default_rng(1)
    area = []
    for _ in range(20_000):
        cut = int(size * (1 - rng.random()) ** 0.5)
        sides = [
            min(centre + cut // 2, size) - max(centre - cut // 2, 0) for centre in rng.integers(size, size=2).tolist()
        ]
        area.append(sides[0] * sides[1] / size**2)
    assert abs((1 - draws.shares).mean() - np.mean(area)) < 0.01
    centre = draws.boxes[(draws.boxes > 0).all(1) & (draws.boxes < size).all(1)]
    assert ((centre[:, 2] - centre[:, 0]) == (centre[:, 3] - centre[:, 1])).all()  # squares, unless clipped


def test_with_both_each_batch_has_one_of_them_with_equal_chance():
    draws = Mixing(0.2, 1.0, 8, 0, CPU).draw(0, 10_000, 2)
    assert abs(draws.cut.mean() - 0.5) < 0.02
    assert stats.kstest(draws.shares[~draws.cut], stats.beta(0.2, 0.2).cdf).pvalue > 1e-3


def test_partners_are_a_random_permutation_of_every_batch():
    partners = Mixing(0.2, 0, 8, 0, CPU).draw(0, 3000, 4).partners
    assert (np.sort(partners, axis=1) == np.arange(4)).all()
    _, counts = np.unique(partners, axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 125 - 5 * 125**0.5


def test_draws_depend_on_seed_and_epoch_alone():
    def draws(seed, epoch):
        return [column.tolist() for column in Mixing(0.2, 1.0, 8, seed, CPU).draw(epoch, 20, 4)]

    assert draws(1, 2) == draws(1, 2)
    for other in (draws(1, 3), draws(2, 2)):
        assert all(a != b for a, b in zip(other, draws(1, 2), strict=True))


# ---------------------------------------------------------------- mixed batches


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0), (0, 1.0), (1.0, 1.0)])
def test_images_and_labels_are_mixed_literally(mixup, cutmix):
    mixing = Mixing(mixup, cutmix, 8, 3, CPU)
    cut, boxes, shares, partners = mixing.draw(7, 5, 16)
    seen = set()
    for i, (before, after) in enumerate(zip(batches_of(), mixing(batches_of(), 7, 5, 16), strict=True)):
        share = after.mixed.share
        assert (share.shape, share.dtype) == ((), torch.float32)
        assert share.item() == pytest.approx(shares[i])
        assert torch.equal(after.labels, before.labels)
        assert torch.equal(after.index, before.index)
        assert after.images.is_contiguous(memory_format=torch.channels_last)
        assert after.images.dtype == torch.float32
        top, left, bottom, right = boxes[i]
        for k, partner in enumerate(partners[i]):
            assert after.mixed.labels[k] == before.labels[partner]
            own, other = before.images[k], before.images[partner]
            if cut[i]:
                expected = own.clone()
                expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
                assert torch.equal(after.images[k], expected)
                if partner != k:
                    pixels = (after.images[k] == own).all(0).float().mean()  # no two random pixels are equal
                    assert pixels.item() == pytest.approx(share.item(), abs=1e-7)
            else:
                torch.testing.assert_close(after.images[k], share * own + (1 - share) * other)
        seen.add(bool(cut[i]))
    assert seen == {bool(cutmix)} if not (mixup and cutmix) else {True, False}


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize("recipe", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_both_loaders_are_mixed_and_nothing_else_changes(loader, recipe):
    options = {**OPTIONS, "loader": loader, "batch_size": 32}
    plain, mixed = (module("fake", recipe=changes, **options) for changes in (None, recipe))
    shares = []
    for epoch in range(3):
        for data in (plain, mixed):
            data.set_epoch(epoch)
        assert len(mixed.train_dataloader()) == 8
        for before, after in zip(plain.train_dataloader(), mixed.train_dataloader(), strict=True):
            assert before.mixed is None
            assert torch.equal(before.labels, after.labels)
            assert torch.equal(before.index, after.index)
            assert torch.equal(after.mixed.labels.sort().values, after.labels.sort().values)
            # a permutation has the same sum of pixels, and so have images mixed with one
            if "mixup" in recipe:
                torch.testing.assert_close(before.images.sum(0), after.images.sum(0))
            shares.append(after.mixed.share.item())
    assert len(set(shares)) > 8  # of 24; with CutMix, one for each area
    assert 0 <= min(shares) <= max(shares) <= 1


def test_nothing_is_drawn_or_wrapped_without_an_option():
    assert type(module("fake", **OPTIONS).train_dataloader()) is ResidentLoader


# ---------------------------------------------------------------- labels


def test_a_value_of_a_mixed_batch_is_the_weighted_mean_for_both_labels():
    logits, labels, others = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 1, 0, 0, 2, 2])
    batch = Batch(torch.zeros(6, 1, 2, 2), labels, torch.arange(6))

    def loss(labels):
        return F.cross_entropy(logits, labels)

    assert torch.equal(batch.over_labels(loss), loss(labels))
    mixed = batch._replace(mixed=Mixed(others, torch.tensor(0.3)))
    target = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(others, 4)
    torch.testing.assert_close(mixed.over_labels(loss), F.cross_entropy(logits, target))

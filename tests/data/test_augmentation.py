"""Policies, random erasing and Cutout: what they do, how often, and that both loaders repeat it."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kdbench.data.augmentation import POLICIES, Policy, cutout_rectangles, erased_rectangles, fill
from kdbench.data.batch import Training
from kdbench.data.resident import ResidentLoader
from kdbench.data.streaming import StreamingLoader
from tests.helpers.data import module, part, same, symmetric

PLAIN = Training(seed=3, crop_padding=0, padding_mode="zero", flip=False)
AUGMENTED = PLAIN._replace(crop_padding=2, flip=True)


def loader_of(kind, data, training, workers=0):
    size, channels = data.images.shape[1], data.images.shape[-1]
    if kind == "resident":
        return ResidentLoader(data, 4, "cpu", training)
    return StreamingLoader(data, size, channels, 4, "cpu", training, workers=workers)


# ---------------------------------------------------------------- policies


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_a_policy_comes_after_crop_and_flip(kind, name, channels):
    data = part(10, size=8, channels=channels)
    before, after = (loader_of(kind, data, AUGMENTED._replace(augment=augment)) for augment in ("none", name))
    policy, changed = Policy(name, AUGMENTED.seed), 0
    for epoch in range(3):
        before.set_epoch(epoch)
        after.set_epoch(epoch)
        for plain, augmented in zip(before, after, strict=True):
            assert torch.equal(plain.index, augmented.index)
            assert augmented.images.is_contiguous(memory_format=torch.channels_last)
            for image, result, index in zip(plain.images, augmented.images, plain.index.tolist(), strict=True):
                expected = policy((image * 255).round().byte(), epoch, index)
                assert torch.equal((result * 255).round().byte(), expected)
                changed += not torch.equal(image, result)
    assert changed > 12  # of 24; some operations change nothing


@pytest.mark.parametrize(("name", "reference"), [
    ("randaugment", v2.RandAugment(num_ops=2, magnitude=9)), ("trivialaugment", v2.TrivialAugmentWide()),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_of_a_policy_works(name, reference, channels, monkeypatch):
    used, original = set(), reference._apply_image_or_video_transform

    def recorded(self, image, transform_id, *args, **kwargs):
        used.add(transform_id)
        return original(image, transform_id, *args, **kwargs)

    monkeypatch.setattr(type(reference), "_apply_image_or_video_transform", recorded)
    policy, image = Policy(name, 0), torch.arange(channels * 64, dtype=torch.uint8).view(channels, 8, 8)
    results = [policy(image, 0, index) for index in range(200)]
    assert used == set(reference._AUGMENTATION_SPACE)
    assert {(result.shape, result.dtype) for result in results} == {(image.shape, torch.uint8)}
    torch.manual_seed(0)
    assert len({result.numpy().tobytes() for result in results}) > 25
    assert vars(policy.transform).keys() == vars(reference).keys()
    assert {k: v for k, v in vars(policy.transform).items() if k.startswith("num") or k == "magnitude"} == {
        k: v for k, v in vars(reference).items() if k.startswith("num") or k == "magnitude"
    }


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_depends_on_seed_epoch_and_index_alone(name):
    image = torch.from_numpy(part(1, size=16).images[0]).permute(2, 0, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    results = [Policy(name, 1)(image, 2, index) for index in range(40)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    policy = Policy(name, 1)
    assert all(torch.equal(policy(image, 2, index), results[index]) for index in reversed(range(40)))
    for other, epoch in ((Policy(name, 9), 2), (policy, 3)):
        assert not all(torch.equal(other(image, epoch, index), results[index]) for index in range(40))


@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders_give_the_same_images_with_any_number_of_workers(workers):
    data, training = part(10, size=8), PLAIN._replace(augment="randaugment")
    resident, streaming = loader_of("resident", data, training), loader_of("streaming", data, training, workers)
    for epoch in (0, 2):
        resident.set_epoch(epoch)
        streaming.set_epoch(epoch)
        assert same(resident, streaming)
        assert same(resident, streaming)  # iterating changes nothing
    resident.set_epoch(3)
    assert not same(resident, streaming)


# ---------------------------------------------------------------- rectangles


def sides_of(rectangles):
    return rectangles[:, 2] - rectangles[:, 0], rectangles[:, 3] - rectangles[:, 1]


def test_erased_rectangles_have_the_areas_ratios_and_positions_of_the_paper():
    count, size = 20_000, 100
    rectangles = erased_rectangles(count, size, 0.25, np.random.default_rng(0))
    assert rectangles.min() >= 0
    assert rectangles.max() <= size
    erased = rectangles[rectangles.any(1)]
    assert abs(len(erased) / count - 0.25) < 0.012  # 4 standard deviations
    height, width = sides_of(erased)
    area, ratio = height * width / size**2, height / width
    assert area.min() > 0.015
    assert area.max() < 0.34
    assert abs(area.mean() - 0.175) < 0.005
    assert 0.25 < ratio.min() < 0.35
    assert 2.9 < ratio.max() < 3.6
    assert abs(np.log(ratio).mean()) < 0.05  # high and wide ones are equally likely
    assert abs((ratio > 1).mean() - 0.5) < 0.03
    for first, side in ((erased[:, 0], height), (erased[:, 1], width)):
        place = (first + 0.5) / (size - side + 1)
        assert abs(place.mean() - 0.5) < 0.02
        assert abs((place < 0.25).mean() - 0.25) < 0.03


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_erased_rectangles_of_small_images_are_neither_empty_nor_outside(size):
    rectangles = erased_rectangles(2000, size, 1.0, np.random.default_rng(0))
    assert all(side.min() >= 1 for side in sides_of(rectangles))
    assert rectangles.min() >= 0
    assert rectangles.max() <= size


@pytest.mark.parametrize(("size", "side"), [(32, 16), (32, 1), (8, 5), (8, 15)])
def test_cut_out_squares_have_their_centre_anywhere_and_are_clipped(size, side):
    rectangles = cutout_rectangles(20_000, size, side, np.random.default_rng(0))
    literal = []
    for row in range(size):
        pixels = [place for place in range(row - side // 2, row - side // 2 + side) if 0 <= place < size]
        literal.append((pixels[0], pixels[-1] + 1))
    for first, end in ((0, 2), (1, 3)):
        drawn, counts = np.unique(rectangles[:, [first, end]], axis=0, return_counts=True)
        assert {tuple(pair) for pair in drawn.tolist()} == set(literal)
        for pair, count in zip(drawn.tolist(), counts, strict=True):
            expected = 20_000 / size * literal.count(tuple(pair))
            assert abs(count - expected) < 5 * expected**0.5
    height, width = sides_of(rectangles)
    mean = np.mean([end - first for first, end in literal])
    assert abs((height * width).mean() / mean**2 - 1) < 0.03  # rows and columns are independent


def test_rectangles_are_filled_and_nothing_else_is():
    images = torch.rand(3, 2, 5, 5).contiguous(memory_format=torch.channels_last)
    rectangles = torch.tensor([[[1, 0, 3, 2], [4, 4, 5, 5]], [[0, 0, 0, 0], [2, 2, 2, 4]], [[0, 0, 5, 5], [0] * 4]])
    colour = torch.tensor([0.25, 0.75])[:, None, None]
    expected = images.clone()
    expected[0, :, 1:3, 0:2] = colour
    expected[0, :, 4, 4] = colour[:, 0, 0]
    expected[2] = colour
    filled = fill(images, rectangles, colour)
    assert torch.equal(filled, expected)
    assert filled.is_contiguous(memory_format=torch.channels_last)


def test_filling_needs_no_values():
    images, rectangles = torch.rand(3, 2, 5, 5, device="meta"), torch.zeros(3, 2, 4, device="meta", dtype=torch.int64)
    assert fill(images, rectangles, torch.zeros(2, 1, 1, device="meta")).shape == images.shape


# ---------------------------------------------------------------- in the data module


@pytest.mark.parametrize(("loader", "normalize"), [("resident", True), ("streaming", False)])
@pytest.mark.parametrize(("recipe", "share", "tolerance"), [
    ({"erasing": 0.5}, 0.5 * 0.175, 0.015),
    ({"cutout": 16}, (14 / 32) ** 2, 0.01),  # a mean side of 14 after clipping: (17 * 16 + 8 + 2 (9 + ... + 15)) / 32
    ({"erasing": 1.0, "cutout": 16}, 0.33, 0.03),  # less than both together: they may overlap
])  # fmt: skip
def test_the_expected_share_of_pixels_is_filled_with_the_mean(recipe, share, tolerance, loader, normalize):
    options = {"loader": loader, "workers": 0, "crop_padding": 0, "flip": False, "normalize": normalize}
    plain, data = (module("fake", recipe=changes, **options) for changes in (None, recipe))
    filled, mean = [], torch.tensor(data.mean)[:, None, None]
    for epoch in range(2):
        for each in (plain, data):
            each.set_epoch(epoch)
        for before, after in zip(plain.train_dataloader(), data.train_dataloader(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(before[1:3], after[1:3], strict=True))
            covered = (after.images == mean).all(1, keepdim=True)
            assert torch.equal(torch.where(covered, before.images, after.images), before.images)
            filled.append(covered.float().mean((1, 2, 3)))
    per_image = torch.cat(filled)
    assert per_image.mean().item() == pytest.approx(share, abs=tolerance)
    if recipe == {"erasing": 0.5}:
        assert (per_image > 0.01).float().mean().item() == pytest.approx(0.5, abs=0.07)


FULL = {"augment": "randaugment", "erasing": 0.5, "cutout": 8, "mixup": 0.4, "cutmix": 1.0}


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_an_epoch_is_repeated_by_another_data_module_and_no_other_epoch_is(loader):
    options = {"recipe": FULL, "loader": loader, "image_size": 8, "num_train": 200}
    data, other, other_seed = (
        module("fake", seed=seed, workers=workers, **options) for seed, workers in ((1, 0), (1, 2), (2, 0))
    )
    train = data.train_dataloader()
    list(train)
    data.set_epoch(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(train)
    assert torch.equal(before, torch.get_rng_state())
    other.set_epoch(4)
    other_seed.set_epoch(4)
    assert same(other.train_dataloader(), batches)
    assert not same(other_seed.train_dataloader(), batches)
    data.set_epoch(5)
    assert not same(train, batches)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_evaluation_sees_images_as_they_are(loader):
    options = {"noise": symmetric(), "loader": loader, "workers": 0, "image_size": 8, "num_train": 200, "num_test": 50}
    plain, augmented = (module("fake", recipe=recipe, **options) for recipe in (None, FULL))
    for part_of in ("val_dataloader", "test_dataloader", "wrong_dataloader"):
        assert same(getattr(plain, part_of)(), getattr(augmented, part_of)())
        assert all(batch.mixed is None for batch in getattr(augmented, part_of)())

import subprocess
import sys

import numpy as np
import pytest
import torch

from kdbench.data.batch import Training
from kdbench.data.resident import ResidentLoader
from tests.helpers.data import part, same, tensors

AUGMENTED = Training(seed=3, crop_padding=2, padding_mode="zero", flip=True)


def literal(image: np.ndarray, top: int, left: int, flip: bool, padding: int, mode: str) -> np.ndarray:
    """Crop and flip one (H, W, C) image, pixel by pixel."""
    size = len(image)
    out = np.zeros_like(image)
    for y in range(size):
        for x in range(size):
            row, column = top + y - padding, left + x - padding
            if mode == "reflect":
                row, column = (min(abs(v), 2 * (size - 1) - abs(v)) for v in (row, column))
            if 0 <= row < size and 0 <= column < size:
                out[y, size - 1 - x if flip else x] = image[row, column]
    return out


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_the_literal_crop_and_flip_of_each_image(mode, channels):
    data = part(7, size=6, channels=channels)
    loader = ResidentLoader(data, 3, training=AUGMENTED._replace(padding_mode=mode))
    loader.set_epoch(5)
    order, corner, flip, _ = (t.tolist() for t in loader._draw())
    i = 0
    for batch in loader:
        for image, label, index in zip(*batch[:3], strict=True):
            position = order[i]
            assert (label, index) == (data.labels[position], data.index[position])
            top, left = divmod(corner[i] - position * 10 * 10, 10)
            assert 0 <= top <= 4
            assert 0 <= left <= 4
            expected = literal(data.images[position], top, left, bool(flip[i]), 2, mode)
            assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), expected)
            i += 1
    assert i == 6


@pytest.mark.parametrize("flip", [True, False])
def test_views_with_the_same_number_are_the_same_and_others_differ(flip):
    training = AUGMENTED._replace(flip=flip, padding_mode="reflect")
    loader, seen = ResidentLoader(part(7, size=6), 3, training=training), {}
    for epoch in range(200):
        loader.set_epoch(epoch)
        for batch in loader:
            for image, index, view in zip(batch.images, batch.index.tolist(), batch.views.tolist(), strict=True):
                assert view // training.views == index  # in the source, not in this part of it
                assert torch.equal(seen.setdefault(view, image), image)
    assert training.views == 25 * (1 + flip)
    assert len(seen) > 0.95 * 7 * training.views  # nearly all have been met
    assert len({image.numpy().tobytes() for image in seen.values()}) == len(seen)


def test_views_are_not_counted_in_evaluation_or_with_random_operations():
    assert all(batch.views is None for batch in ResidentLoader(part(7), 3))
    training = AUGMENTED._replace(augment="randaugment")
    assert all(batch.views is None for batch in ResidentLoader(part(7), 3, training=training))


def test_all_offsets_and_both_flips_are_equally_likely():
    loader = ResidentLoader(part(20_000, size=2), 100, training=AUGMENTED)
    order, corner, flip, _ = loader._draw()
    offset = corner - order * 36
    counts = torch.bincount(offset // 6 * 5 + offset % 6, minlength=25)
    assert len(counts) == 25
    assert counts.min() > 700  # 800 are expected; four standard deviations are 110
    assert abs(flip.float().mean() - 0.5) < 0.015


def test_an_epoch_has_every_sample_once_except_for_the_dropped_ones():
    loader = ResidentLoader(part(10), 4, training=AUGMENTED)
    left_out = set()
    for epoch in range(60):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 2
        index = torch.cat([b.index for b in batches]).tolist()
        assert len(set(index)) == 8
        left_out |= set(range(0, 100, 10)) - set(index)
    assert len(left_out) == 10  # different ones each time


def test_evaluation_keeps_order_images_and_the_last_partial_batch():
    data = part(10)
    loader = ResidentLoader(data, 4)
    batches = list(loader)
    assert [len(b.images) for b in batches] == [4, 4, 2]
    assert len(loader) == 3
    assert torch.equal(torch.cat([b.index for b in batches]), torch.from_numpy(data.index))
    images = torch.cat([b.images for b in batches])
    assert torch.equal(images, torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255)
    assert same(loader, loader)


def test_without_padding_and_flip_training_only_shuffles():
    data = part(8)
    (batch,) = ResidentLoader(data, 8, training=Training(0, 0, "zero", False))
    pixels = data.images[batch.index.numpy() // 10]
    assert torch.equal(batch.images, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_float_channels_last(channels):
    batch = next(iter(ResidentLoader(part(8, channels=channels), 4, training=AUGMENTED)))
    assert batch.images.shape == (4, channels, 6, 6)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.labels.dtype == batch.index.dtype == torch.int64


def test_an_epoch_depends_on_seed_and_epoch_and_on_nothing_else():
    loader, other = (ResidentLoader(part(), 4, training=AUGMENTED) for _ in range(2))
    list(loader)  # one epoch more than the other
    torch.manual_seed(1)
    loader.set_epoch(2)
    other.set_epoch(2)
    assert same(loader, other)
    assert same(loader, other)  # iterating changes nothing
    loader.set_epoch(3)
    assert not same(loader, other)
    other_seed = ResidentLoader(part(), 4, training=AUGMENTED._replace(seed=4))
    other_seed.set_epoch(2)
    assert not same(other_seed, other)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(ResidentLoader(part(), 4, training=AUGMENTED))
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_set_after_iter_takes_effect():
    """Lightning makes the iterator before it sets the first epoch."""
    loader, other = (ResidentLoader(part(), 4, training=AUGMENTED) for _ in range(2))
    iterator = iter(loader)
    loader.set_epoch(4)
    other.set_epoch(4)
    assert same(iterator, other)


BATCHES_HASH = """
import hashlib, numpy as np
from kdbench.data.batch import Part, Training
from kdbench.data.resident import ResidentLoader
images = np.random.default_rng(0).integers(0, 256, (10, 6, 6, 3), np.uint8)
loader = ResidentLoader(Part(images, np.arange(10), np.arange(10)), 4, training=Training(3, 2, "zero", True))
loader.set_epoch(9)
batches_hash = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for b in loader for t in b[:3])).hexdigest()
"""


def test_another_process_draws_the_same_batches():
    code = BATCHES_HASH + "print(batches_hash)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here: dict[str, str] = {}
    exec(BATCHES_HASH, here)
    assert here["batches_hash"] == other.strip()


@pytest.mark.gpu
def test_batches_are_on_the_gpu_and_equal_those_on_the_cpu():
    cpu = list(ResidentLoader(part(64), 8, "cpu", AUGMENTED))
    gpu = list(ResidentLoader(part(64), 8, "cuda", AUGMENTED))
    assert all(t.is_cuda for b in gpu for t in tensors(b))
    assert same(cpu, (b._make(t.cpu() for t in b[:3]) for b in gpu))

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data import folder
from kdbench.data.batch import Part, Training
from kdbench.data.resident import ResidentLoader
from kdbench.data.streaming import StreamingLoader
from kdbench.errors import UserError
from tests.helpers.data import part, plant, same

AUGMENTED = Training(seed=3, crop_padding=2, padding_mode="zero", flip=True)


def stream(workers=0, training=AUGMENTED, data=None):
    """A streaming loader of 6x6 images in batches of 4."""
    data = data or part(10)
    return StreamingLoader(data, 6, data.images.shape[-1], 4, "cpu", training, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_loader_with_any_number_of_workers_repeats_an_epoch(workers):
    loader, other = stream(), stream(workers)
    for epoch in (0, 2):
        loader.set_epoch(epoch)
        other.set_epoch(epoch)
        assert same(loader, other)
    loader.set_epoch(3)
    assert not same(loader, other)


def test_the_order_is_that_of_the_resident_loader_without_duplicates():
    streaming, resident = stream(), ResidentLoader(part(10), 4, training=AUGMENTED)
    for loader in (streaming, resident):
        loader.set_epoch(7)
    index, expected = (torch.cat([b.index for b in loader]) for loader in (streaming, resident))
    assert torch.equal(index, expected)
    assert len(set(index.tolist())) == 8
    assert len(streaming) == len(resident) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_images_are_those_of_the_resident_loader(channels):
    data = part(10, channels=channels)
    assert same(stream(training=None, data=data), ResidentLoader(data, 4))


def test_decoded_files_are_those_of_the_resident_loader(tmp_path):
    tree = folder.find(plant(tmp_path / "tree", size=9), "dataset.root")
    names, labels = folder.listing(tree.test, tree.classes)
    index = np.arange(len(labels))
    decoded = Part(folder.decode(names, 6, 3), labels, index)
    streaming = StreamingLoader(Part(names, labels, index), 6, 3, 4, workers=2)
    assert same(streaming, ResidentLoader(decoded, 4))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_augmented_images_are_crops_of_the_padded_image(mode):
    data = part(8)
    padded = np.pad(data.images, ((0, 0), (2, 2), (2, 2), (0, 0)), "constant" if mode == "zero" else "reflect")
    for batch in stream(training=AUGMENTED._replace(padding_mode=mode), data=data):
        for image, _, index in zip(*batch[:3], strict=True):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            source = padded[index // 10]
            crops = [source[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
            assert any(np.array_equal(pixels, c) or np.array_equal(pixels, c[:, ::-1]) for c in crops)


def test_batches_are_float_channels_last():
    batch = next(iter(stream()))
    assert batch.images.shape == (4, 3, 6, 6)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.index.dtype == torch.int64


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(stream())
    assert torch.equal(before, torch.get_rng_state())


def test_random_resized_crop_in_training_and_centre_crop_in_evaluation(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 128, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    names = np.array([bytes(tmp_path / "ramp.png")] * 4)
    data = Part(names, np.zeros(4, np.int64), np.arange(4))
    training = Training(0, None, "zero", False)
    (batch,) = StreamingLoader(data, 16, 3, 4, training=training, border=0.0625)
    assert batch.images.shape == (4, 3, 16, 16)
    assert len({image.sum().item() for image in batch.images}) == 4
    (batch,) = StreamingLoader(data, 16, 3, 4, border=0.0625)
    rows = batch.images[0, 0, :, 0] * 255
    # the central 7/8 of 64 rows are rows 4 to 59; an output row is the mean of about 3.5 of them
    assert rows[0].item() == pytest.approx(4 * (4 + 56 / 32 - 0.5), abs=3)
    assert rows[-1].item() == pytest.approx(4 * (60 - 56 / 32 - 0.5), abs=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_line(tmp_path, workers):
    path = tmp_path / "damaged.png"
    path.write_bytes(b"no image")
    data = Part(np.array([bytes(path)]), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(UserError) as error:
        list(StreamingLoader(data, 6, 3, 1, workers=workers))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)

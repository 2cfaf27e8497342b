import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kdbench.data import folder, sources
from kdbench.errors import UserError
from tests.helpers.data import data_module, group, module, plant


def image_folder(root, **changes):
    return group("dataset", "imagefolder", root=str(root), image_size=8, **changes)


def refusal(config):
    """The message of the error, in one line, with which loading a data set fails."""
    with pytest.raises(UserError) as error:
        data_module(config, batch_size=1).prepare()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_labels_and_classes_of_a_tree(tmp_path):
    plant(tmp_path / "t", classes=("bee", "ant"))
    data = module("imagefolder", root=str(tmp_path / "t"), image_size=8, val_fraction=0.25, batch_size=4)
    assert data.classes == ("ant", "bee")
    assert data.num_classes == 2
    assert (data.train_size, data.val_size, data.test_size) == (12, 4, 8)
    (test,) = data.test_dataloader()
    with Image.open(tmp_path / "t/test/bee/001.png") as image:
        expected = np.asarray(image)
    assert test.labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal((test.images[5] * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    (validation,) = data.val_dataloader()
    for index, label in zip(validation.index.tolist(), validation.labels.tolist(), strict=True):
        assert label == index // 8  # position in the source's training set


def test_a_named_data_set_reads_a_tree_and_checks_its_classes(tmp_path):
    root = plant(tmp_path / "t", classes=[f"c{i}" for i in range(10)], train=2, test=1, size=32)
    data = module("cifar10", tree=str(root), batch_size=10)
    assert data.classes[3] == "c3"
    assert data.test_size == 10
    assert (
        refusal(group("dataset", "cifar100", tree=str(root))) == "dataset.num_classes=100: cifar100 has 10 classes here"
    )


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "RGBA"), (3, "P"), (1, "LA")])
def test_other_colour_modes_and_sizes_are_converted(tmp_path, loader, channels, mode):
    root = plant(tmp_path / "t", classes=("a", "b"), train=2, test=1)
    grey = np.full((20, 30), 80, np.uint8)
    grey[:, :3] = grey[:, 27:] = 255  # outside the central square, and beyond the reach of bilinear resizing
    Image.fromarray(grey).convert(mode).save(root / "test/a/000.png")
    changes = {"channels": channels, "loader": loader, "workers": 0, "mean": [0.5], "std": [0.5]}
    data = module("imagefolder", root=str(root), image_size=8, batch_size=2, **changes)
    (batch,) = data.test_dataloader()
    assert batch.images.shape == (2, channels, 8, 8)
    assert (batch.images[0] * 255).round().unique().tolist() == [80]


def test_images_in_subfolders_of_a_class_count_and_other_files_do_not(tmp_path):
    root = plant(tmp_path / "t", train=2)
    (root / "train/ant/more").mkdir()
    os.replace(root / "train/ant/001.png", root / "train/ant/more/x.PNG")
    (root / "train/ant/notes.txt").write_text("")
    (root / "train/ant/._000.png").write_text("")
    (root / "train/.cache").mkdir()
    tree = folder.find(root, "dataset.root")
    names, labels = folder.listing(tree.train, tree.classes)
    assert [os.fsdecode(n).removeprefix(f"{root}/train/") for n in names[:3]] == [
        "ant/000.png",
        "ant/more/x.PNG",
        "bee/000.png",
    ]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    root = plant(tmp_path / "t")
    (root / "train/bee/more").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tree = folder.find(root, "dataset.root")
    with pytest.raises(UserError, match=r"train/bee/more: cannot be read \(Permission denied\)$"):
        folder.listing(tree.train, tree.classes)


def test_val_serves_as_the_test_folder_unless_test_has_the_classes(tmp_path):
    root = plant(tmp_path / "t")
    os.replace(root / "test", root / "val")
    assert folder.find(root, "k").test == root / "val"
    (root / "test").mkdir()  # e.g. ImageNet's, without labels
    assert folder.find(root, "k").test == root / "val"
    for name in ("ant", "bee", "cat"):
        (root / "test" / name).mkdir()
    assert folder.find(root, "k").test == root / "test"


def test_tinyimagenet_is_read_in_the_layout_of_its_archive(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    classes = [f"n{i:08d}" for i in range(200)]
    for name in classes:
        (root / "train" / name / "images").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(root / "train" / name / "images" / f"{name}_0.JPEG")
    (root / "val/images").mkdir(parents=True)
    lines = []
    for i, name in enumerate(reversed(classes)):
        Image.new("L", (64, 64), i).save(root / f"val/images/val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t63\t63")
    (root / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "test/images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "test/images/test_0.JPEG")
    data = module("tinyimagenet", root=str(tmp_path), batch_size=50)
    assert data.num_classes == 200
    assert data.train_size == 200
    assert data.test_size == 200
    (test,) = data.test_dataloader()
    assert test.labels.tolist() == list(range(200))
    grey = (test.images.mean((1, 2, 3)) * 255).round()
    assert (grey - (199 - test.labels)).abs().max() <= 1  # label k is image 199 - k; JPEG may change it by one
    # root may also be the tree itself
    assert module("tinyimagenet", root=str(root), batch_size=50).train_size == 200
    lines[0] = lines[0].replace(classes[-1], "n99999999")
    (root / "val/val_annotations.txt").write_text("\n".join(lines))
    assert "val_0.JPEG is of class n99999999" in refusal(group("dataset", "tinyimagenet", root=str(tmp_path)))


def test_imagenet_is_cropped_at_random_and_streams(tmp_path):
    root = plant(tmp_path / "imagenet", classes=[f"n{i}" for i in range(1000)], train=1, test=1, size=2)
    os.replace(root / "test", root / "val")
    data = module("imagenet", root=str(tmp_path), image_size=16, workers=0)
    assert not data.resident
    assert data.num_classes == 1000
    assert next(iter(data.train_dataloader())).images.shape == (64, 3, 16, 16)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_damaged_file_is_named(tmp_path, loader):
    root = plant(tmp_path / "t")
    damaged = root / "train/bee/003.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = image_folder(root, loader=loader, workers=0, val_fraction=0.0)
    if loader == "resident":
        assert refusal(config).startswith(f"{damaged}: cannot be read as an image")
    else:
        data = data_module(config, batch_size=24).prepare()
        with pytest.raises(UserError, match=r"bee/003\.png: cannot be read as an image"):
            list(data.train_dataloader())


def test_the_message_tells_what_is_wrong_with_a_tree(tmp_path):
    assert "dataset.root=null" in refusal(group("dataset", "imagefolder", image_size=8))
    missing = tmp_path / "nowhere"
    assert f"dataset.root={missing}: there is no folder {missing};" in refusal(image_folder(missing))
    assert f"dataset.tree={missing}: there is no" in refusal(group("dataset", "cifar10", tree=str(missing)))
    root = plant(tmp_path / "t")
    os.replace(root / "test", root / "tests")
    assert f"no folder {root / 'test'};" in refusal(image_folder(root))
    os.replace(root / "tests", root / "test")
    os.replace(root / "train", root / "trains")
    assert f"no folder {root / 'train'};" in refusal(image_folder(root))
    (root / "train").mkdir()
    assert "has no class folders" in refusal(image_folder(root))
    (root / "train").rmdir()
    os.replace(root / "trains", root / "train")
    os.replace(root / "test/ant", root / "test/wasp")
    assert refusal(image_folder(root)).endswith(
        "the classes of train and test differ; 2 are in only one of them: ant, wasp"
    )
    os.replace(root / "test/wasp", root / "test/ant")
    for image in (root / "train/cat").iterdir():
        image.unlink()
    assert refusal(image_folder(root)).startswith(f"{root / 'train/cat'}: no images in this class folder")


def test_a_fingerprint_depends_on_content_and_not_on_the_path(tmp_path):
    root = plant(tmp_path / "a")
    first = sources.fingerprint(image_folder(root))
    assert first is not None
    assert len(first) == 16
    assert sources.fingerprint(image_folder(plant(tmp_path / "b"))) == first
    assert sources.fingerprint(group("dataset", "cifar10", tree=str(root))) == first
    (root / "train/ant/notes.txt").write_text("not an image")
    assert sources.fingerprint(image_folder(root)) == first
    os.replace(root / "train/ant/000.png", root / "train/ant/zzz.png")
    renamed = sources.fingerprint(image_folder(root))
    (root / "test/bee/000.png").write_bytes(b"12345")
    assert len({first, renamed, sources.fingerprint(image_folder(root))}) == 3
    assert sources.fingerprint(group("dataset", "digits")) is None
    assert sources.fingerprint(group("dataset", "imagenet")) is None


@pytest.mark.parametrize("shape", [(12, 12), (12, 10)])
def test_image_size_defaults_to_that_of_a_square_first_image(tmp_path, shape):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.zeros((*shape, 3), dtype=np.uint8)).save(tmp_path / part / name / "0.png")
    config = group("dataset", "imagefolder", root=str(tmp_path))
    if shape[0] == shape[1]:
        assert sources.image_size(config) == 12
    else:
        with pytest.raises(UserError, match=r"dataset\.image_size=null.*0\.png is 10x12, not square"):
            sources.image_size(config)


# ------------------------------------------------------------------------------------------------- pixels of more bits

DEEP = np.array([[0, 255, 256, 32767], [32768, 43690, 65280, 65535]], np.uint16)


def opened(path, channels=1):
    return np.asarray(folder.open_image(os.fsencode(path), channels))


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_images_of_16_bits_keep_their_high_bytes(tmp_path, ending):
    Image.fromarray(DEEP).save(tmp_path / f"x.{ending}")
    assert opened(tmp_path / f"x.{ending}").tolist() == [[0, 0, 1, 127], [128, 170, 255, 255]]
    assert np.array_equal(opened(tmp_path / f"x.{ending}", 3), np.stack([DEEP >> 8] * 3, axis=-1))


def test_an_image_of_16_bits_in_big_endian_order(tmp_path):
    Image.frombytes("I;16B", (4, 2), DEEP.astype(">u2").tobytes()).save(tmp_path / "x.tiff")
    assert np.array_equal(opened(tmp_path / "x.tiff"), DEEP >> 8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_grey_of_16_bits_is_read_as_colours_of_16_bits_are(tmp_path):
    rows = b"".join(
        b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in DEEP
    )  # Pillow cannot write such a file
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)), chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    Image.fromarray(DEEP).save(tmp_path / "grey.png")
    assert np.array_equal(opened(tmp_path / "colour.png", 3), opened(tmp_path / "grey.png", 3))


def test_8_bits_stored_as_16_are_the_same_picture(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey * 257).save(tmp_path / "x.png")
    assert np.array_equal(opened(tmp_path / "x.png"), grey)


@pytest.mark.parametrize(("pixels", "mode"), [(np.float32([[0.2, 0.8]]), "F"), (np.int32([[0, 70000]]), "I")])
def test_pixels_without_a_range_are_refused_before_training(tmp_path, pixels, mode):
    root = plant(tmp_path / "t")
    image = root / "train/bee/x.tiff"
    Image.fromarray(pixels).save(image)
    expected = f"{image}: has 32-bit pixels (Pillow mode {mode}), whose range is not known; save it with 8 or 16 bits"
    assert refusal(image_folder(root, loader="resident")) == expected
    with pytest.raises(UserError) as error:
        sources.verify(image_folder(root))
    assert str(error.value) == expected

"""The identity of a tree of images: its relative names, classes and contents, and nothing else."""

import multiprocessing
import os
import shutil
import time
from functools import cache
from hashlib import sha256

import numpy as np
import pytest

from kdbench.data import hashes, sources, tree_hashes
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import group, plant


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """The folder of remembered hashes; empty."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/trees"


@pytest.fixture
def settled(monkeypatch):
    """Every file counts as settled, however new it is."""
    monkeypatch.setattr(hashes, "SETTLED", -np.inf)


@pytest.fixture
def reads(monkeypatch):
    """Names of the images whose content is read."""
    names = []
    original = tree_hashes.read_hash

    def read_hash(path):
        names.append(os.path.basename(os.fsdecode(path)))
        return original(path)

    monkeypatch.setattr(tree_hashes, "read_hash", read_hash)
    return names


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path / "tree", train=4, test=2)


@cache
def image_folder():
    return group("dataset", "imagefolder", image_size=8)


def identity(root):
    return sources.fingerprint(image_folder() | {"root": str(root)})


def swap(first, second):
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def flat(path, content=b"0" * 500):
    """A tree of one class whose images all have the same size."""
    for name in ("train/ant/0.png", "train/bee/0.png", "test/ant/0.png", "test/bee/0.png"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------- what counts


def test_two_images_of_different_classes_that_change_places_make_other_data(tmp_path):
    root = flat(tmp_path / "tree")
    (root / "train/ant/0.png").write_bytes(b"1" * 500)
    first = identity(root)
    swap(root / "train/ant/0.png", root / "train/bee/0.png")
    second = identity(root)
    swap(root / "train/bee/0.png", root / "test/bee/0.png")
    assert len({first, second, identity(root)}) == 3


def test_runs_on_other_contents_of_the_same_names_and_sizes_are_other_runs(tmp_path):
    root = flat(tmp_path / "tree")
    words = ["dataset=cifar10", f"dataset.tree={root}", "dataset.num_classes=2", "teacher=resnet14", "student=resnet8"]
    first = spec_of(words)
    (root / "test/bee/0.png").write_bytes(b"1" * 500)
    second = spec_of(words)
    assert first.id != second.id
    assert first.dependencies["teacher"].id != second.dependencies["teacher"].id


def test_times_place_and_order_of_creation_do_not_count(tmp_path, root):
    first = identity(root)
    for image in root.rglob("*.png"):
        os.utime(image, ns=(1, 1))
    assert identity(root) == first
    shutil.copytree(root, tmp_path / "deep/er/copy")
    assert identity(tmp_path / "deep/er/copy") == first
    for image in sorted(root.rglob("*.png"), reverse=True):
        copy = tmp_path / "reversed" / image.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, copy)
    assert identity(tmp_path / "reversed") == first


def test_names_of_images_and_of_classes_count(root):
    seen = {identity(root)}
    (root / "train/ant/000.png").rename(root / "train/ant/zzz.png")
    seen.add(identity(root))
    for role in ("train", "test"):
        (root / role / "cat").rename(root / role / "dog")
    seen.add(identity(root))
    (root / "train/ant/more").mkdir()
    (root / "train/ant/zzz.png").rename(root / "train/ant/more/zzz.png")
    seen.add(identity(root))
    (root / "train/ant/001.png").unlink()
    seen.add(identity(root))
    assert len(seen) == 5


def test_labels_of_annotated_images_count(tmp_path):
    root = flat(tmp_path / "tree")
    for name in ("ant", "bee"):
        (root / "test" / name / "0.png").unlink()
        (root / "test" / name).rmdir()
    (root / "test/images").mkdir()
    seen = set()
    for classes in (("ant", "bee"), ("bee", "ant")):
        for number in range(2):
            (root / f"test/images/{number}.png").write_bytes(b"0" * 500)
        lines = [f"{number}.png\t{name}\t0\t0\t1\t1\n" for number, name in enumerate(classes)]
        (root / "test/val_annotations.txt").write_text("".join(lines))
        seen.add(identity(root))
    assert len(seen) == 2


# ------------------------------------------------------------------------------------------------- what is remembered


def test_no_content_is_read_twice(root, reads, settled, cache_folder):
    first = identity(root)
    assert len(reads) == 18
    assert identity(root) == first
    assert len(reads) == 18
    assert len(list(cache_folder.iterdir())) == 1


def test_only_what_changed_is_read_again(root, reads, settled):
    first = identity(root)
    reads.clear()
    os.utime(root / "train/ant/001.png", ns=(1, 1))
    assert identity(root) == first
    assert reads == ["001.png"]
    reads.clear()
    (root / "train/ant/000.png").unlink()
    shutil.copyfile(root / "train/bee/002.png", root / "train/ant/new.png")
    assert identity(root) != first
    assert reads == ["new.png"]


def test_an_image_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path, settled):
    root = flat(tmp_path / "tree")
    image, other = root / "train/ant/0.png", tmp_path / "other.png"
    os.utime(image, ns=(1, 1))
    first = identity(root)
    other.write_bytes(b"1" * 500)
    os.utime(other, ns=(1, 1))
    other.replace(image)
    assert identity(root) != first


def test_images_that_were_just_written_are_not_remembered(root, reads, cache_folder):
    old = time.time() - 100
    identity(root)
    assert not cache_folder.exists()
    for image in root.rglob("*.png"):
        os.utime(image, (old, old))  # the time of the status change is still now
    identity(root)
    assert not cache_folder.exists()
    assert len(reads) == 36


@pytest.mark.parametrize(
    "garbage",
    [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 100, "half", "flipped", "other arrays", "other shapes", "objects"],
)
def test_a_garbled_file_of_hashes_is_made_anew(root, reads, settled, cache_folder, garbage):
    first = identity(root)
    (file,) = cache_folder.iterdir()
    whole = file.read_bytes()
    if garbage == "half":
        file.write_bytes(whole[: len(whole) // 2])
    elif garbage == "flipped":
        file.write_bytes(whole.replace(b"train/ant", b"train/eel"))
    elif garbage == "other arrays":
        with file.open("wb") as handle:
            np.savez(handle, names=np.zeros(3))
    elif garbage in ("other shapes", "objects"):
        with np.load(file) as content:
            arrays = dict(content)
        kind = object if garbage == "objects" else arrays["hashes"].dtype
        with file.open("wb") as handle:
            np.savez(handle, **arrays | {"hashes": arrays["hashes"][:-1].astype(kind)})
    else:
        file.write_bytes(garbage)
    reads.clear()
    assert identity(root) == first
    assert len(reads) == 18
    reads.clear()
    assert identity(root) == first
    assert not reads


def test_images_are_hashed_where_nothing_can_be_remembered(root, reads, settled, tmp_path, monkeypatch):
    first = identity(root)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "file"))
    assert identity(root) == identity(root) == first
    assert len(reads) == 3 * 18


def test_what_was_hashed_before_an_interruption_is_kept(root, settled, monkeypatch):
    monkeypatch.setattr(tree_hashes, "CHUNK", 1)
    monkeypatch.setattr(tree_hashes, "THREADS", 1)
    original, reads = tree_hashes.read_hash, []

    def interrupted(path):
        if len(reads) == 10:
            raise KeyboardInterrupt
        reads.append(path)
        return original(path)

    monkeypatch.setattr(tree_hashes, "read_hash", interrupted)
    with pytest.raises(KeyboardInterrupt):
        identity(root)
    monkeypatch.setattr(tree_hashes, "read_hash", lambda path: reads.append(path) or original(path))
    identity(root)
    assert len(reads) == len(set(reads)) == 18


def test_processes_at_once_agree(root, settled, cache_folder):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=lambda: answers.put(identity(root))) for _ in range(3)]
    for process in processes:
        process.start()
    assert {answers.get(timeout=60) for _ in processes} == {identity(root)}
    for process in processes:
        process.join()
    assert len(list(cache_folder.iterdir())) == 1


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_an_image_that_cannot_be_read_is_named_in_one_line(root):
    (root / "train/ant/x.png").symlink_to(root / "nowhere")
    with pytest.raises(UserError, match=r"^[^\n]*/train/ant/x\.png: cannot be read \(No such file or directory\)$"):
        identity(root)


def test_an_image_that_disappears_while_it_is_hashed_is_named(root, monkeypatch):
    original = tree_hashes.read_hash

    def read_hash(path):
        if path.endswith(b"train/bee/001.png"):
            os.unlink(path)
        return original(path)

    monkeypatch.setattr(tree_hashes, "read_hash", read_hash)
    with pytest.raises(UserError, match=r"train/bee/001\.png: cannot be read \(No such file"):
        identity(root)


@pytest.fixture
def changed_while_read(tmp_path, monkeypatch):
    """`changed_while_read(times)`: a file that grows after each of so many readings."""
    image = tmp_path / "a"
    image.write_bytes(b"old")
    original = os.read

    def begin(times):
        left = iter(range(times))

        def read(file, size):
            content = original(file, size)
            if next(left, None) is not None:
                image.write_bytes(b"newer" + content)
            return content

        monkeypatch.setattr(tree_hashes.os, "read", read)
        return os.fsencode(image)

    return begin


def test_an_image_that_changes_while_it_is_hashed_is_read_again(changed_while_read):
    path = changed_while_read(1)
    assert tree_hashes.read_hash(path) == (hashes.state_of(os.stat(path)), sha256(b"newerold").digest())


def test_an_image_that_never_stops_changing_is_refused(changed_while_read):
    with pytest.raises(UserError, match=r"/a: changes while it is read"):
        tree_hashes.read_hash(changed_while_read(100))


# ------------------------------------------------------------------------------------------------- what is shown


def test_progress_is_shown_where_hashing_takes_long_and_only_there(root, monkeypatch, capsys):
    identity(root)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(tree_hashes, "PATIENCE", 0.0)
    monkeypatch.setattr(tree_hashes, "CHUNK", 9)
    identity(root)
    lines = capsys.readouterr().out.splitlines()
    assert f"hashing 18 images of {root}: 50 %" in lines

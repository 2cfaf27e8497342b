import pickle

import numpy as np
import pytest

from kdbench.errors import UserError
from kdbench.evaluation.corruptions import BENCHMARK, EXTRA, check, corrupted, summary

N, SHAPE = 4, (2, 2, 3)
LABELS = np.array([3, 1, 4, 1])


def stack(seed):
    return np.random.default_rng(seed).integers(0, 256, (5 * N, *SHAPE), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder like CIFAR-10-C, with four images and three corruptions."""
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    for seed, name in enumerate(["spatter", "fog", "gaussian_noise"]):
        np.save(tmp_path / f"{name}.npy", stack(seed))
    (tmp_path / "README.txt").write_text("not an array")
    return tmp_path


def error_message(folder, labels=LABELS, shape=SHAPE):
    with pytest.raises(UserError) as caught:
        check(folder, labels, shape)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"corruptions={folder}")
    return message


def test_there_are_fifteen_benchmark_and_four_extra_corruptions():
    assert len(BENCHMARK) == 15
    assert len(EXTRA) == 4
    assert len({*BENCHMARK, *EXTRA}) == 19


def test_names_are_in_the_order_of_the_paper(folder):
    np.save(folder / "my_own.npy", stack(9))
    assert check(folder, LABELS, SHAPE) == ["gaussian_noise", "fog", "spatter", "my_own"]


def test_every_severity_is_a_fifth_of_the_file_in_order(folder):
    sets = list(corrupted(folder, ["fog", "spatter"]))
    assert [(c.corruption, c.severity) for c in sets] == [(n, s) for n in ("fog", "spatter") for s in (1, 2, 3, 4, 5)]
    for name, seed in (("spatter", 0), ("fog", 1)):
        joined = np.concatenate([c.images for c in sets if c.corruption == name])
        assert np.array_equal(joined, stack(seed))
    assert all(c.images.dtype == np.uint8 and c.images.shape == (N, *SHAPE) for c in sets)
    assert all(c.images.flags.writeable and not isinstance(c.images, np.memmap) for c in sets)  # as torch requires


def test_a_folder_that_does_not_exist(tmp_path):
    assert error_message(tmp_path / "absent").endswith("the folder does not exist")


def test_a_folder_without_labels(folder):
    (folder / "labels.npy").unlink()
    assert error_message(folder) == f"corruptions={folder}: labels.npy is missing"


def test_a_folder_without_corruptions(tmp_path):
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    assert "contains no <corruption>.npy" in error_message(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [LABELS, np.tile(LABELS, 5).astype(float), np.tile(LABELS, (5, 1)), np.tile(LABELS, 4)],
    ids=["one severity", "float", "2-d", "four severities"],
)
def test_labels_of_the_wrong_format(folder, labels):
    np.save(folder / "labels.npy", labels)
    message = error_message(folder)
    assert "labels.npy" in message
    assert "(20,)" in message


@pytest.mark.parametrize(("row", "severity", "image"), [(0, 1, 0), (2, 1, 2), (19, 5, 3)])
def test_labels_in_the_wrong_order(folder, row, severity, image):
    labels = np.tile(LABELS, 5)
    labels[row] = 9
    np.save(folder / "labels.npy", labels)
    message = error_message(folder)
    assert f"severity {severity}: label 9 at image {image}; must be {LABELS[image]}" in message


def test_labels_sorted_by_image_instead_of_severity(folder):
    np.save(folder / "labels.npy", np.repeat(LABELS, 5))
    assert "must be" in error_message(folder)


@pytest.mark.parametrize(
    "images",
    [stack(1)[:-1], stack(1).astype(np.float32), stack(1)[..., :1], stack(1).transpose(0, 3, 1, 2)],
    ids=["rows", "dtype", "channels", "channels first"],
)
def test_images_of_the_wrong_format(folder, images):
    np.save(folder / "fog.npy", images)
    message = error_message(folder)
    assert "fog.npy" in message
    assert "must be uint8 of shape (20, 2, 2, 3)" in message


def test_pickles_are_refused_without_loading_them(folder):
    class Trap:
        def __reduce__(self):
            return (folder.joinpath("sprung").touch, ())

    np.save(folder / "fog.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    assert "fog.npy: cannot be read" in error_message(folder)
    with pytest.raises(UserError, match="cannot be read"):
        list(corrupted(folder, ["fog"]))
    (folder / "fog.npy").write_bytes(pickle.dumps(Trap()))
    assert "fog.npy: cannot be read" in error_message(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("name", ["fog.npy", "labels.npy"])
def test_truncated_files(folder, name):
    content = (folder / name).read_bytes()
    for length in (0, 5, 140):
        (folder / name).write_bytes(content[:length])
        assert f"{name}: cannot be read" in error_message(folder)


def test_summary_is_the_unweighted_mean():
    accuracies = {"fog": [0.9, 0.8, 0.7, 0.6, 0.5], "snow": [0.5, 0.4, 0.3, 0.2, 0.1]}
    assert summary(accuracies) == {
        "accuracy": pytest.approx(0.5),
        "error": pytest.approx(0.5),
        "averaged": ["snow", "fog"],
        "severities": pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3]),
    }


def test_summary_leaves_the_extra_corruptions_out():
    means = summary({"fog": [0.9] * 5, "spatter": [0.1] * 5})
    assert means["averaged"] == ["fog"]
    assert means["accuracy"] == pytest.approx(0.9)
    assert summary({"spatter": [0.1] * 5}) is None

"""Labels and transition matrices from files: what is read, and what is refused."""

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from kdbench.data import label_files, noise
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import group, module

LABELS = np.arange(1000) % 10


def write_fields(path, **arrays):
    """Write named arrays in one of the formats of human labels; returns the path as text."""
    if path.suffix == ".pt":
        torch.save(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        fields = np.zeros(len(next(iter(arrays.values()))), [(name, np.int64) for name in arrays])
        for name, values in arrays.items():
            fields[name] = values
        np.save(path, fields)
    return str(path)


def write(path, content):
    """Write text or an array, or nothing for None; returns the path."""
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        np.save(path, content)
    return path


@pytest.mark.parametrize("suffix", ["pt", "npz", "npy"])
@pytest.mark.parametrize(("annotation", "field"), label_files.ANNOTATIONS.items())
def test_human_labels(tmp_path, suffix, annotation, field):
    human = np.random.default_rng(1).integers(0, 10, 1000)
    path = write_fields(tmp_path / f"human.{suffix}", clean_label=LABELS, **{field: human})
    config = group("noise", "human", path=path, annotation=annotation)
    assert np.array_equal(noise.corrupt(LABELS, 10, config), human)
    subset = noise.Source("x", (), LABELS, np.array([3, 5]), None)
    assert np.array_equal(noise.corrupt(LABELS[[3, 5]], 10, config, subset), human[[3, 5]])


def test_human_labels_as_tensors_and_from_numpy_1(tmp_path):
    labels = LABELS[:100]
    tensors = {"clean_label": torch.tensor(labels), "worse_label": torch.tensor(labels)}
    path = write_fields(tmp_path / "human.pt", **tensors)
    assert np.array_equal(noise.corrupt(labels, 10, group("noise", "human", path=path)), labels)
    old = pickle.dumps({"clean_label": labels, "worse_label": labels}, 2)
    old = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", old), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"human/{name}", content)
    assert np.array_equal(noise.corrupt(labels, 10, group("noise", "human", path=path)), labels)


class Code:
    """Unpickling it would create the file `ran`."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("suffix", ["pt", "npz", "npy"])
def test_files_that_would_run_code_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"human.{suffix}"
    content = {"clean_label": Code(), "worse_label": Code()}
    if suffix == "pt":
        torch.save(content, path)
    else:
        np.save(path, np.array(content, dtype=object)) if suffix == "npy" else np.savez(path, clean_label=Code())
    with pytest.raises(UserError, match=r"noise\.path=.*cannot be read") as error:
        noise.check(group("noise", "human", path=str(path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_human_labels_in_another_order_are_refused(tmp_path):
    labels = np.random.default_rng(0).permutation(LABELS)
    order = np.random.default_rng(1).permutation(1000)
    path = write_fields(tmp_path / "human.npz", clean_label=labels[order], worse_label=labels[order])
    with pytest.raises(UserError, match=r"clean_label differs .* in \d+ of 1000 images.*order") as error:
        noise.corrupt(labels, 10, group("noise", "human", path=path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"worse_label": LABELS}, "has no clean_label; it has worse_label"),
        ({"clean_label": LABELS, "aggre_label": LABELS}, "has no worse_label; it has clean_label, aggre_label"),
        ({"clean_label": LABELS, "worse_label": LABELS + 1}, "worse_label: label 10 at index 9"),
        ({"clean_label": LABELS, "worse_label": LABELS[1:]}, "999 values of worse_label; must be 1000"),
    ],
)
def test_a_file_without_the_requested_human_labels_is_refused(tmp_path, fields, message):
    path = write_fields(tmp_path / "human.npz", **fields)
    with pytest.raises(UserError, match=re.escape(message)):
        noise.check(group("noise", "human", path=path), 10)


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_labels_of_a_file(tmp_path, suffix):
    clean = module("digits")
    count = clean.train_size + clean.val_size
    labels = np.random.default_rng(1).integers(0, 10, count)
    path = tmp_path / f"labels.{suffix}"
    if suffix == "npy":
        np.save(path, labels)
    else:
        order = np.random.default_rng(2).permutation(count)
        path.write_text("index,label\n" + "".join(f"{i},{labels[i]}\n" for i in order))
    config = group("noise", "file", path=str(path))
    data = module("digits", noise=config)
    assert np.array_equal(data.train_labels, labels[data.train_index])
    subset = module("digits", noise=config, imbalance=group("imbalance", "step", factor=4))
    assert subset.train_size < data.train_size
    assert np.array_equal(subset.train_labels, labels[subset.train_index])
    np.save(tmp_path / "short.npy", labels[:-1])
    with pytest.raises(UserError, match=rf"noise.path=.*: {count - 1} labels; must be {count}"):
        module("digits", noise=group("noise", "file", path=str(tmp_path / "short.npy")))


BAD_LABELS = {
    "absent.npy": (None, "No such file"),
    "labels.txt": ("0\n1\n", "must end in .npy, .csv"),
    "text.npy": ("not an array", "cannot be read"),
    "head.csv": ("image,label\n0,1\n", "index,label"),
    "empty.csv": ("index,label\n", "must be integers"),
    "word.csv": ("index,label\n0,cat\n", "cannot be read: invalid literal"),
    "short.csv": ("index,label\n0\n", "cannot be read"),
    "gap.csv": ("index,label\n0,1\n2,1\n", "index 1 is missing"),
    "twice.csv": ("index,label\n0,1\n0,1\n", "or duplicated"),
    "high.csv": ("index,label\n0,1\n1,10\n", "label 10 at index 1; must be in [0, 10)"),
    "low.npy": (np.array([0, -1]), "label -1 at index 1"),
    "float.npy": (np.array([0.0, 1.0]), "must be integers"),
    "flat.npy": (np.zeros((2, 2), int), "must be integers"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_bad_file_of_labels_is_refused_in_one_line_before_anything_is_loaded(tmp_path, name):
    content, message = BAD_LABELS[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        spec_of(["dataset=digits", "noise=file", f"noise.path={path}"])
    assert message in str(error.value)
    assert f"noise.path={path}" in str(error.value)
    assert "\n" not in str(error.value)


BAD_MATRICES = {
    "absent.csv": (None, "not found"),
    "m.txt": ("1", "must end in .npy, .csv"),
    "shape.npy": (np.eye(9), "has shape 9 x 9; must be 10 x 10"),
    "row.npy": (np.eye(10)[:3], "has shape 3 x 10"),
    "flat.npy": (np.ones(10), "has shape 10;"),
    "sum.npy": (np.eye(10) * 1.1, "row 0 sums to 1.1"),
    "negative.npy": (np.eye(10) * 2 - np.roll(np.eye(10), 1, 1), "row 0 sums to 1; its entries must be >= 0"),
    "nan.npy": (np.full((10, 10), np.nan), "row 0 sums to nan"),
    "word.csv": ("a,b\nc,d\n", "cannot be read"),
    "object.npy": (np.array([{}]), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_a_bad_matrix_is_refused_in_one_line_before_anything_is_loaded(tmp_path, name):
    content, message = BAD_MATRICES[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        spec_of(["dataset=digits", "noise=asymmetric", "noise.rate=null", f"noise.matrix={path}"])
    assert message in str(error.value)
    assert f"noise.matrix={path}" in str(error.value)
    assert "\n" not in str(error.value)

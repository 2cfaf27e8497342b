import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.data import group, module, plant, symmetric

from kdbench import teachers
from kdbench.config import composed
from kdbench.data import label_files, noise, sources
from kdbench.distill import data_of
from kdbench.errors import UserError
from kdbench.experiment import preflight

LABELS = np.arange(50_000) % 10
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = sorted(noise.MAPS["cifar100"])
FIVE = 5 / np.sqrt(50_000)  # five standard deviations of a rate measured on LABELS are at most half of it


def test_no_noise_is_a_copy():
    noisy = noise.corrupt(LABELS, 10, group("noise", "none"))
    assert np.array_equal(noisy, LABELS)
    assert noisy is not LABELS


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize(("include_true", "share"), [(False, 1.0), (True, 0.9)])
def test_the_rate_is_the_rate_and_every_other_class_is_as_likely(rate, include_true, share):
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=rate, include_true=include_true))
    changed = noisy != LABELS
    assert abs(changed.mean() - rate * share) < 0.01  # four standard deviations are below 0.009
    moves = np.bincount((noisy - LABELS)[changed] % 10, minlength=10)
    assert moves[0] == 0
    assert np.abs(moves[1:] / changed.sum() - 1 / 9).max() < 0.013
    assert noisy.dtype == np.int64
    assert noisy.min() == 0
    assert noisy.max() == 9


def test_rate_one_leaves_no_label_or_a_chance_of_one_in_k():
    assert (noise.corrupt(LABELS, 10, symmetric(rate=1.0)) != LABELS).all()
    noisy = noise.corrupt(LABELS, 10, symmetric(rate=1.0, include_true=True))
    assert abs((noisy == LABELS).mean() - 0.1) < 0.006


def test_two_classes_swap():
    labels = np.array([0, 1, 1, 0])
    assert np.array_equal(noise.corrupt(labels, 2, symmetric(rate=1.0)), 1 - labels)


def test_noise_depends_on_its_own_seed_and_grows_with_the_rate():
    one, again = (noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=1)) for _ in range(2))
    other = noise.corrupt(LABELS, 10, symmetric(rate=0.4, seed=2))
    less = noise.corrupt(LABELS, 10, symmetric(rate=0.2, seed=1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    hit = less != LABELS
    assert np.array_equal(less[hit], one[hit])


def test_the_run_seed_changes_no_label_and_the_test_set_stays_clean():
    clean = module("digits")
    runs = [module("digits", noise=symmetric(rate=0.5), seed=seed) for seed in (0, 1)]
    assert runs[0].labels_hash == runs[1].labels_hash != clean.labels_hash
    assert np.array_equal(runs[0].train_labels, runs[1].train_labels)
    assert np.array_equal(runs[0].train_index, clean.train_index)  # the same images are held out
    assert np.array_equal(runs[0].true_labels, clean.train_labels)
    for loader in ("test_dataloader", "val_dataloader"):
        noisy, plain = ([b.labels for b in getattr(m, loader)()] for m in (runs[0], clean))
        flipped = np.mean([(a != b).float().mean().item() for a, b in zip(noisy, plain, strict=True)])
        assert flipped == 0 if loader == "test_dataloader" else flipped > 0.3


def test_the_record_says_what_came_of_the_noise():
    data = module("digits", noise=symmetric(rate=0.5))
    flipped = int((data.train_labels != data.true_labels).sum())
    assert data.noise_record["flipped"] == flipped
    assert data.noise_record["realised_rate"] == flipped / data.train_size
    assert abs(data.noise_record["realised_rate"] - 0.5) < 0.06
    assert data.noise_record["name"] == "symmetric"
    assert data.noise_record["rate"] == 0.5


@pytest.mark.parametrize(
    ("choice", "changes", "words"),
    [
        ("none", {"rate": 0.4}, ["noise.rate=0.4", "noise=symmetric"]),
        ("symmetric", {"rate": 1.5}, ["noise.rate=1.5", "[0, 1]"]),
        ("none", {"rate": None}, ["noise.rate=null", "noise=symmetric"]),
        ("symmetric", {"rate": None}, ["noise.rate=null", "[0, 1]"]),
        ("symmetric", {"name": "pairs"}, ["noise.name=pairs", "none, symmetric"]),
        ("symmetric", {"name": "file"}, ["noise.name=file", "noise.path", "noise=file"]),
        ("pairflip", {"rate": -0.1}, ["noise.rate=-0.1", "[0, 1]"]),
        ("asymmetric", {"matrix": "m.npy"}, ["noise.rate=0.4", "noise.rate=null", "matrix"]),
        ("asymmetric", {"rate": None}, ["noise.rate=null", "[0, 1]"]),
        ("file", {}, ["noise.path=null", "noise=file"]),
        ("human", {}, ["noise.path=null", "noise=human"]),
        ("human", {"path": "x.pt", "rate": 0.2}, ["noise.rate=0.2", "noise.rate=null", "labels"]),
        ("human", {"path": "x.npz", "annotation": "best"}, ["noise.annotation=best", "worst"]),
    ],
)
def test_wrong_noise_is_refused_before_anything_is_loaded(choice, changes, words):
    with pytest.raises(UserError) as error:
        noise.check(group("noise", choice, **changes))
    assert all(word in str(error.value) for word in words)


def source(labels=LABELS, classes=tuple(CIFAR10), reader="cifar10", pixels=None):
    return noise.Source(reader, classes, labels, np.arange(len(labels)), pixels)


def transitions(noisy, labels=LABELS, num_classes=10):
    """Shares of labels (columns) in each true class (rows)."""
    found = noise.record({"name": "x"}, labels, noisy, num_classes)["transition"]
    return np.array(found) / np.bincount(labels)[:, None]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.45, 1.0])
def test_pairflip_is_the_next_class(rate):
    noisy = noise.corrupt(LABELS, 10, group("noise", "pairflip", rate=rate))
    wanted = (1 - rate) * np.eye(10) + rate * np.roll(np.eye(10), 1, axis=1)
    assert np.abs(transitions(noisy) - wanted).max() < FIVE * np.sqrt(10) / 2
    assert abs((noisy != LABELS).mean() - rate) < FIVE / 2


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_asymmetric_on_cifar10(rate):
    noisy = noise.corrupt(LABELS, 10, group("noise", "asymmetric", rate=rate), source())
    wanted = np.eye(10)
    for true, label in ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3)):
        wanted[true, true] -= rate
        wanted[true, label] += rate
    assert np.abs(transitions(noisy) - wanted).max() < FIVE * np.sqrt(10) / 2
    assert abs((noisy != LABELS).mean() - rate / 2) < FIVE / 2


def test_asymmetric_on_cifar100_is_the_next_of_the_superclass():
    labels = np.arange(50_000) % 100
    config = group("noise", "asymmetric", rate=1.0)
    noisy = noise.corrupt(labels, 100, config, source(labels, tuple(CIFAR100), "cifar100"))
    moves = dict(zip(labels.tolist(), noisy.tolist(), strict=True))
    named = {CIFAR100[a]: CIFAR100[b] for a, b in moves.items()}
    assert [named[name] for name in ("beaver", "seal", "whale", "apple", "sweet_pepper", "lawn_mower", "tractor")] == [
        "dolphin", "whale", "beaver", "mushroom", "apple", "rocket", "lawn_mower"]  # fmt: skip
    assert sorted(moves.values()) == list(range(100))
    for start in range(100):  # circles of five
        label, seen = start, set()
        while label not in seen:
            seen.add(label)
            label = moves[label]
        assert (len(seen), label) == (5, start)
    some = noise.corrupt(labels, 100, {**config, "rate": 0.3}, source(labels, tuple(CIFAR100), "cifar100"))
    assert abs((some != labels).mean() - 0.3) < FIVE / 2


def test_asymmetric_goes_by_names_and_says_which_is_missing():
    with pytest.raises(UserError, match=r"noise\.matrix=null.*no class is called airplane"):
        noise.corrupt(LABELS, 10, group("noise", "asymmetric"), source(classes=tuple("abcdefghij")))
    with pytest.raises(UserError, match=r"noise\.matrix=null: only cifar10, cifar100.*dataset\.source=digits"):
        module("digits", noise=group("noise", "asymmetric"))


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_a_transition_matrix_is_recovered(tmp_path, suffix):
    matrix = np.random.default_rng(0).dirichlet(np.ones(10), 10)
    matrix[3] = np.eye(10)[3]  # a class that stays
    matrix[4] = np.eye(10)[7]  # and one that goes
    path = tmp_path / f"matrix.{suffix}"
    np.save(path, matrix) if suffix == "npy" else np.savetxt(path, matrix, delimiter=",", fmt="%.17g")
    noisy = noise.corrupt(LABELS, 10, group("noise", "asymmetric", rate=None, matrix=str(path)))
    assert np.abs(transitions(noisy) - matrix).max() < FIVE * np.sqrt(10) / 2
    assert (noisy[LABELS == 3] == 3).all()
    assert (noisy[LABELS == 4] == 7).all()


def test_instance_noise_goes_by_the_image_and_the_class():
    pixels = np.random.default_rng(0).normal(size=(len(LABELS), 12))
    given = source(pixels=lambda positions: pixels[positions])
    config = group("noise", "instance", rate=0.4)
    noisy = noise.corrupt(LABELS, 10, config, given)
    assert abs((noisy != LABELS).mean() - 0.4) < FIVE / 2
    assert np.array_equal(noisy, noise.corrupt(LABELS, 10, config, given))
    assert not np.array_equal(noisy, noise.corrupt(LABELS, 10, {**config, "seed": 1}, given))
    assert np.array_equal(noise.corrupt(LABELS, 10, {**config, "rate": 0.0}, given), LABELS)
    fewer = noise.corrupt(LABELS, 10, {**config, "rate": 0.2}, given)
    hit = fewer != LABELS
    assert abs(hit.mean() - 0.2 - 0.1 * np.exp(-2) / np.sqrt(2 * np.pi) / 0.97725) < FIVE / 2  # mean when truncated
    assert np.array_equal(fewer[hit], noisy[hit])
    # equal images of one class go the same way where the softmax is sharp; another class has another projection
    alike = source(pixels=lambda positions: np.full((len(positions), 12), 20.0))
    moved = transitions(noise.corrupt(LABELS, 10, config, alike))
    np.fill_diagonal(moved, 0)
    assert moved.max(axis=1) == pytest.approx(moved.sum(axis=1), rel=0.05)
    assert len(set((moved.argmax(axis=1) - np.arange(10)).tolist())) > 2
    # sd 0.1 of the rates of single images: with rate 0.5 they seldom leave [0.1, 0.9]
    assert abs((noise.corrupt(LABELS, 10, {**config, "rate": 0.5}, alike) != LABELS).mean() - 0.5) < FIVE / 2


def test_instance_noise_takes_normalised_images_from_arrays_and_from_trees(tmp_path):
    config = group("noise", "instance", rate=0.5)
    data = module("digits", noise=config)
    assert abs(data.noise_record["realised_rate"] - 0.5) < 0.07
    assert data.labels_hash == module("digits", noise=config, normalize=False, seed=3).labels_hash
    root = plant(tmp_path, train=40)
    words = {"root": str(root), "image_size": 8, "batch_size": 16, "val_fraction": 0.0, "workers": 0}
    once, again = (module("imagefolder", noise=config, **words, loader=kind) for kind in ("resident", "streaming"))
    assert once.noise_record["flipped"] > 30
    assert once.labels_hash == again.labels_hash


KINDS = ["symmetric", "pairflip", "instance"]


def test_labels_are_the_same_in_every_process_and_for_every_seed_of_the_run():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from tests.helpers.data import group, module
for name in {KINDS}:
    print(module("digits", noise=group("noise", name), seed=5, batch_size=32).labels_hash)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    for name, there in zip(KINDS, done.stdout.split(), strict=True):
        here = [module("digits", noise=group("noise", name), seed=seed).labels_hash for seed in (0, 1)]
        assert {*here, there} == {there}
        assert module("digits", noise=group("noise", name, seed=1)).labels_hash != there


def test_labels_are_the_same_for_every_method_and_its_teacher():
    hashes = set()
    for words in (["method=ce"], ["method=kd", "seed=3"], ["method=dml", "student=resnet14", "recipe.batch_size=32"]):
        cfg = from_overrides([*words, "dataset=digits", "noise=pairflip", "imbalance=step", "imbalance.factor=4"])
        hashes |= {data_of(cfg).prepare().labels_hash, data_of(teachers.own_config(cfg)).prepare().labels_hash}
    assert len(hashes) == 1


@pytest.mark.parametrize("name", KINDS)
def test_the_test_set_is_untouched_and_validation_is_noisy_unless_asked(name):
    _, test = sources.load(group("dataset", "digits"))
    noisy, clean = (module("digits", noise=group("noise", name, clean_validation=c)) for c in (False, True))
    assert noisy.labels_hash == clean.labels_hash
    true = np.concatenate([b.labels for b in module("digits").val_dataloader()])
    share = [(np.concatenate([b.labels for b in m.val_dataloader()]) != true).mean() for m in (noisy, clean)]
    assert share[0] > 0.2
    assert share[1] == 0
    for data in (noisy, clean):
        assert np.array_equal(np.concatenate([b.labels for b in data.test_dataloader()]), test.labels)


def test_the_record_holds_transitions_and_class_counts():
    data = module("digits", noise=symmetric(rate=0.3))
    record = data.noise_record
    transition = np.array(record["transition"])
    assert transition.shape == (10, 10)
    assert transition.sum(axis=1).tolist() == record["true_class_counts"] == np.bincount(data.true_labels).tolist()
    assert transition.sum(axis=0).tolist() == record["class_counts"] == np.bincount(data.train_labels).tolist()
    assert transition.sum() - np.trace(transition) == record["flipped"]
    json.dumps(record)
    labels = np.arange(101)
    assert noise.record(symmetric(), labels, labels, 101)["transition"] == "left out: 101 classes, over 100"
    assert noise.record(group("noise", "none"), labels, labels, 101)["transition"] == "left out: no noise"


def write(path, **arrays):
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


@pytest.mark.parametrize("suffix", ["pt", "npz", "npy"])
@pytest.mark.parametrize(("annotation", "field"), label_files.ANNOTATIONS.items())
def test_human_labels(tmp_path, suffix, annotation, field):
    labels = LABELS[:1000]
    said = np.random.default_rng(1).integers(0, 10, 1000)
    path = write(tmp_path / f"human.{suffix}", clean_label=labels, **{field: said})
    config = group("noise", "human", path=path, annotation=annotation)
    assert np.array_equal(noise.corrupt(labels, 10, config), said)
    kept = noise.Source("x", (), labels, np.array([3, 5]), None)
    assert np.array_equal(noise.corrupt(labels[[3, 5]], 10, config, kept), said[[3, 5]])


def test_human_labels_of_older_numpy_and_as_tensors(tmp_path):
    labels = LABELS[:100]
    tensors = {"clean_label": torch.tensor(labels), "worse_label": torch.tensor(labels)}
    path = write(tmp_path / "human.pt", **tensors)
    assert np.array_equal(noise.corrupt(labels, 10, group("noise", "human", path=path)), labels)
    old = pickle.dumps({"clean_label": labels, "worse_label": labels}, 2)
    old = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", old), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"human/{name}", content)
    assert np.array_equal(noise.corrupt(labels, 10, group("noise", "human", path=path)), labels)


class Code:
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
    labels = np.random.default_rng(0).permutation(LABELS[:1000])
    order = np.random.default_rng(1).permutation(1000)
    path = write(tmp_path / "human.npz", clean_label=labels[order], worse_label=labels[order])
    with pytest.raises(UserError, match=r"clean_label differs .* in \d+ of 1000 images.*order") as error:
        noise.corrupt(labels, 10, group("noise", "human", path=path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_labels_of_a_file(tmp_path, suffix):
    clean = module("digits")
    count = clean.train_size + clean.val_size
    said = np.random.default_rng(1).integers(0, 10, count)
    path = tmp_path / f"labels.{suffix}"
    if suffix == "npy":
        np.save(path, said)
    else:
        order = np.random.default_rng(2).permutation(count)
        path.write_text("index,label\n" + "".join(f"{i},{said[i]}\n" for i in order))
    config = group("noise", "file", path=str(path))
    data = module("digits", noise=config)
    assert np.array_equal(data.train_labels, said[data.train_index])
    thin = module("digits", noise=config, imbalance=group("imbalance", "step", factor=4))
    assert thin.train_size < data.train_size
    assert np.array_equal(thin.train_labels, said[thin.train_index])
    np.save(tmp_path / "short.npy", said[:-1])
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
    "twice.csv": ("index,label\n0,1\n0,1\n", "there twice"),
    "high.csv": ("index,label\n0,1\n1,10\n", "label 10 at index 1; must be in [0, 10)"),
    "low.npy": (np.array([0, -1]), "label -1 at index 1"),
    "float.npy": (np.array([0.0, 1.0]), "must be integers"),
    "flat.npy": (np.zeros((2, 2), int), "must be integers"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_bad_file_of_labels_is_one_line_before_anything_is_loaded(tmp_path, name):
    content, words = BAD_LABELS[name]
    path = plain(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        preflight(from_overrides(["dataset=digits", "noise=file", f"noise.path={path}"]))
    assert words in str(error.value)
    assert f"noise.path={path}" in str(error.value)
    assert "\n" not in str(error.value)


BAD_MATRICES = {
    "absent.csv": (None, "not found"),
    "m.txt": ("1", "must end in .npy, .csv"),
    "shape.npy": (np.eye(9), "has shape 9 x 9; must be 10 x 10"),
    "row.npy": (np.eye(10)[:3], "has shape 3 x 10"),
    "flat.npy": (np.ones(10), "has shape 10;"),
    "sum.npy": (np.eye(10) * 1.1, "row 0 sums to 1.1"),
    "negative.npy": (np.eye(10) * 2 - np.roll(np.eye(10), 1, 1), "row 0 sums to 1; each must be >= 0"),
    "nan.npy": (np.full((10, 10), np.nan), "row 0 sums to nan"),
    "word.csv": ("a,b\nc,d\n", "cannot be read"),
    "object.npy": (np.array([{}]), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_a_bad_matrix_is_one_line_before_anything_is_loaded(tmp_path, name):
    content, words = BAD_MATRICES[name]
    path = plain(tmp_path / name, content)
    config = ["dataset=digits", "noise=asymmetric", "noise.rate=null", f"noise.matrix={path}"]
    with pytest.raises(UserError) as error:
        preflight(from_overrides(config))
    assert words in str(error.value)
    assert f"noise.matrix={path}" in str(error.value)
    assert "\n" not in str(error.value)


def plain(path, content):
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        np.save(path, content)
    return path


def test_human_files_without_what_is_asked_for(tmp_path):
    for arrays, words in (
        ({"worse_label": LABELS}, "has no clean_label; it has worse_label"),
        ({"clean_label": LABELS, "aggre_label": LABELS}, "has no worse_label; it has clean_label, aggre_label"),
        ({"clean_label": LABELS, "worse_label": LABELS + 1}, "worse_label: label 10 at index 9"),
        ({"clean_label": LABELS, "worse_label": LABELS[1:]}, "49999 values of worse_label; must be 50000"),
    ):
        path = write(tmp_path / "human.npz", **arrays)
        with pytest.raises(UserError, match=re.escape(words)):
            noise.check(group("noise", "human", path=path), 10)

"""Label noise in the data of a run: what it depends on, what it leaves alone, and what is recorded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdbench.config.derived import teacher_training
from kdbench.data import noise
from kdbench.specs.resolve import resolve, spec_of
from kdbench.training.assemble import data_of
from tests.helpers.data import group, load, module, plant, symmetric

KINDS = ["symmetric", "pairflip", "instance"]


def labels_of(loader):
    return np.concatenate([batch.labels for batch in loader])


def test_noise_changes_labels_but_not_the_images_or_the_split():
    clean, noisy = module("digits"), module("digits", noise=symmetric(rate=0.5))
    assert noisy.labels_hash != clean.labels_hash
    assert np.array_equal(noisy.train_index, clean.train_index)  # the same images are held out
    assert np.array_equal(noisy.true_labels, clean.train_labels)


def test_labels_are_the_same_in_every_process_and_for_every_seed_of_the_run():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.helpers.data import group, module
for name in {KINDS}:
    print(module("digits", noise=group("noise", name), seed=5, batch_size=32).labels_hash)"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    for name, expected in zip(KINDS, process.stdout.split(), strict=True):
        hashes = [module("digits", noise=group("noise", name), seed=seed).labels_hash for seed in (0, 1)]
        assert {*hashes, expected} == {expected}
        assert module("digits", noise=group("noise", name, seed=1)).labels_hash != expected


def test_labels_are_the_same_for_every_method_and_its_teacher():
    data = ["dataset=digits", "noise=pairflip", "imbalance=step", "imbalance.factor=4"]
    hashes = set()
    for method in (["method=ce"], ["method=kd", "seed=3"], ["method=dml", "student=resnet14", "recipe.batch_size=32"]):
        spec = spec_of([*method, *data])
        teacher = resolve(teacher_training(spec.config), "teacher")
        hashes |= {data_of(spec).labels_hash, data_of(teacher).labels_hash}
    assert len(hashes) == 1


@pytest.mark.parametrize("name", KINDS)
def test_the_test_set_is_clean_and_validation_is_noisy_unless_clean_validation(name):
    _, test = load(group("dataset", "digits"))
    noisy, clean = (module("digits", noise=group("noise", name, clean_validation=c)) for c in (False, True))
    assert noisy.labels_hash == clean.labels_hash
    true = labels_of(module("digits").val_dataloader())
    assert (labels_of(noisy.val_dataloader()) != true).mean() > 0.2
    assert np.array_equal(labels_of(clean.val_dataloader()), true)
    for data in (noisy, clean):
        assert np.array_equal(labels_of(data.test_dataloader()), test.labels)


def test_instance_noise_takes_normalised_images_from_arrays_and_from_trees(tmp_path):
    config = group("noise", "instance", rate=0.5)
    data = module("digits", noise=config)
    assert abs(data.noise_record["realised_rate"] - 0.5) < 0.07
    assert data.labels_hash == module("digits", noise=config, normalize=False, seed=3).labels_hash
    root = plant(tmp_path, train=40)
    changes = {"root": str(root), "image_size": 8, "batch_size": 16, "val_fraction": 0.0, "workers": 0}
    resident, streaming = (
        module("imagefolder", noise=config, **changes, loader=loader) for loader in ("resident", "streaming")
    )
    assert resident.noise_record["flipped"] > 30
    assert resident.labels_hash == streaming.labels_hash


def test_the_record_holds_rate_transitions_and_class_counts():
    data = module("digits", noise=symmetric(rate=0.5))
    record = data.noise_record
    flipped = int((data.train_labels != data.true_labels).sum())
    assert (record["name"], record["rate"], record["flipped"]) == ("symmetric", 0.5, flipped)
    assert record["realised_rate"] == flipped / data.train_size
    assert abs(record["realised_rate"] - 0.5) < 0.06
    transition = np.array(record["transition"])
    assert transition.shape == (10, 10)
    assert transition.sum(axis=1).tolist() == record["true_class_counts"] == np.bincount(data.true_labels).tolist()
    assert transition.sum(axis=0).tolist() == record["class_counts"] == np.bincount(data.train_labels).tolist()
    assert transition.sum() - np.trace(transition) == flipped
    json.dumps(record)


def test_the_record_leaves_out_large_and_empty_transitions():
    labels = np.arange(101)
    assert noise.record(symmetric(), labels, labels, 101)["transition"] == "left out: 101 classes, over 100"
    assert noise.record(group("noise", "none"), labels, labels, 101)["transition"] == "left out: no noise"

import re

import pytest
import yaml
from tests.helpers.data import CONF, group

from kdbench.data import imbalance, noise, sources

FILES = sorted(f for g in ("dataset", "noise", "imbalance") for f in (CONF / g).glob("*.yaml"))
# keys of one data set alone
EXTRA = {"fake": {"num_train", "num_test", "seed"}}
EXTRA["synmnist"] = EXTRA["fake"] | {"digits", "map_seed"}
DATASETS = [f.stem for f in FILES if f.parent.name == "dataset" and not f.stem.startswith("_")]
TYPE = r"(int|float|bool|str|list)( (>=? -?[\d.]+|in [\[(]-?[\d.]+, -?[\d.]+[\])]))?"
RULE = rf"({TYPE}|[\w.]+(\|[\w.]+)+)( or null)?"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_key_has_a_rule_and_keeps_it(file):
    lines = file.read_text().splitlines()
    if not file.stem.startswith("_"):
        assert re.fullmatch(r"# [^;]+; [^;]+; [^;]+", lines[0])  # what it is; source; what it needs
    keys = {key for key in yaml.safe_load(file.read_text()) if key != "defaults"}
    ruled = {m[1] for line in lines if (m := re.fullmatch(rf"(\w+): .*?  # {RULE}: \S.*", line))}
    assert ruled == keys


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_composes_with_the_same_keys(name):
    config = group("dataset", name)
    assert config["name"] == name
    assert config["source"] in sources.SOURCES
    assert set(config) == set(group("dataset", "cifar100")) | EXTRA.get(name, set())
    assert len(config["mean"]) == len(config["std"])
    assert len(config["mean"]) in (1, config["channels"])
    assert all(0 < value < 1 for value in config["mean"] + config["std"])


def test_every_source_has_a_data_set():
    assert {group("dataset", name)["source"] for name in DATASETS} == set(sources.SOURCES)


def kinds(name):
    return [f.stem for f in FILES if f.parent.name == name and not f.stem.startswith("_")]


@pytest.mark.parametrize("name", kinds("noise"))
def test_noise_kinds_share_their_keys(name):
    config = group("noise", name)
    shared = {"name", "rate", "seed", "clean_validation"}
    # `none` keeps include_true: so that its runs keep their ids
    own = {"include_true"} if name == "none" else set(noise.KINDS[name])
    assert set(config) == shared | own
    assert config["name"] == name
    assert not config["clean_validation"]
    assert config["rate"] == (0 if name == "none" else None if name in noise.GIVEN else 0.4)


@pytest.mark.parametrize("name", kinds("imbalance"))
def test_imbalance_kinds_have_the_keys_that_they_use(name):
    config = group("imbalance", name)
    assert set(config) == {"name"} | set(imbalance.KINDS[name])
    assert config["name"] == name


def test_every_kind_of_noise_and_imbalance_is_an_option():
    assert kinds("noise") == sorted(noise.KINDS)
    assert kinds("imbalance") == sorted(imbalance.KINDS)


def test_the_licence_of_human_labels_is_said():
    assert "CC BY-NC 4.0" in (CONF / "noise" / "human.yaml").read_text()

import re

import pytest
import yaml
from datatools import CONF, group

from kdbench.data import sources

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


def test_noise_kinds_share_their_keys():
    none, symmetric = group("noise", "none"), group("noise", "symmetric")
    assert set(none) == set(symmetric) == {"name", "rate", "seed", "include_true"}
    assert none["rate"] == 0

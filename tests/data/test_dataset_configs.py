import re

import pytest
import yaml

from kdbench.config.groups import CONF, header, options
from kdbench.config.rules import rules_of
from kdbench.data import imbalance, noise, outside, sources
from tests.helpers.data import group

FILES = [f"{g}/{file.stem}" for g in ("dataset", "noise", "imbalance") for file in sorted((CONF / g).glob("*.yaml"))]
DATASETS = options("dataset")
# keys that only one data set has
EXTRA = {"fake": {"num_train", "num_test", "seed"}}
EXTRA["synmnist"] = EXTRA["fake"] | {"digits", "map_seed"}
EXTRA["arrays"] = {"layout"}
EXTRA["custom"] = EXTRA["arrays"] | {"reader", "options"}
EXTRA["huggingface"] = {"subset", "train_split", "test_split", "image_key", "label_key"}


@pytest.mark.parametrize("option", FILES)
def test_every_key_has_a_rule_and_a_meaning(option):
    text = (CONF / f"{option}.yaml").read_text()
    assert header(option)["what"] == text.splitlines()[0].removeprefix("# ")
    rules = rules_of(option)
    keys = [key for key in yaml.safe_load(text) if key != "defaults"]
    for key in keys:
        assert re.search(rf"^{key}: .*  # {re.escape(rules[key].text)}: \S", text, re.MULTILINE)
    assert len(re.findall(r"^\w+: .*  # ", text, re.MULTILINE)) == len(keys)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_composes_with_the_same_keys(name):
    config = group("dataset", name)
    assert config["name"] == name
    assert config["source"] in sources.SOURCES
    assert set(config) == set(group("dataset", "cifar100")) | EXTRA.get(name, set())
    if name in outside.SOURCES:  # computed from the images
        assert (config["mean"], config["std"]) == (None, None)
        return
    assert len(config["mean"]) == len(config["std"])
    assert len(config["mean"]) in (1, config["channels"])
    assert all(0 < value < 1 for value in config["mean"] + config["std"])


def test_every_source_has_a_data_set():
    assert {group("dataset", name)["source"] for name in DATASETS} == set(sources.SOURCES)


@pytest.mark.parametrize("name", options("noise"))
def test_noise_kinds_share_their_keys(name):
    config = group("noise", name)
    shared = {"name", "rate", "seed", "clean_validation"}
    # `none` keeps include_true, so that the ids of its runs stay the same
    own = {"include_true"} if name == "none" else set(noise.KINDS[name])
    assert set(config) == shared | own
    assert config["name"] == name
    assert not config["clean_validation"]
    assert config["rate"] == (0 if name == "none" else None if name in noise.GIVEN else 0.4)


@pytest.mark.parametrize("name", options("imbalance"))
def test_imbalance_kinds_have_the_keys_that_they_use(name):
    config = group("imbalance", name)
    assert set(config) == {"name"} | set(imbalance.KINDS[name])
    assert config["name"] == name


def test_every_kind_of_noise_and_imbalance_is_an_option():
    assert options("noise") == sorted(noise.KINDS)
    assert options("imbalance") == sorted(imbalance.KINDS)


def test_the_header_of_human_labels_names_their_licence():
    assert "CC BY-NC 4.0" in header("noise/human")["what"]

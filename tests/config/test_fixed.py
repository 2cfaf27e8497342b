"""What a file of `conf/` fixes, nothing else can set."""

import pickle

import pytest

from kdbench.config.frozen import FrozenDict, plain
from kdbench.config.groups import addable_methods, header, options
from kdbench.config.overrides import from_overrides
from kdbench.config.rules import rules_of
from kdbench.errors import UserError

FIXED = {
    "method._target_=mine.Other": ["method._target_=mine.Other", "method=kd fixes it at kdbench.methods.kd.KD"],
    "method.needs=[]": ["method.needs=[]", "method=kd"],
    "method.name=at": ["method.name=at", "method=kd fixes it at kd", "method=at chooses another"],
    "method=rkd_d method.name=rkd": ["method.name=rkd", "method=rkd_d fixes it at rkd_d"],
    "method=lwkd method.dependencies=mine.runs": ["method.dependencies=mine.runs"],
    "plus=[at] plus.at._target_=mine.Other": ["plus.at._target_=mine.Other", "plus=[at] fixes it"],
    "noise.name=symmetric": ["noise.name=symmetric", "noise=none", "noise=symmetric chooses another"],
    "noise=file noise.rate=0.2": ["noise.rate=0.2", "noise=file fixes it at null"],
    "imbalance.name=step": ["imbalance.name=step", "imbalance=step chooses another"],
    "logger.kind=csv": ["logger.kind=csv", "logger=csv chooses another"],
    "dataset.source=fake": ["dataset.source=fake", "dataset=digits fixes it at digits"],
}


@pytest.mark.parametrize("overrides", FIXED)
def test_what_a_file_fixes_is_refused_in_a_line(overrides):
    with pytest.raises(UserError) as caught:
        from_overrides(overrides.split())
    assert "\n" not in str(caught.value)
    for part in FIXED[overrides]:
        assert part in str(caught.value)


@pytest.mark.parametrize("method", options("method"))
def test_every_method_fixes_what_it_declares(method):
    rules = rules_of(f"method/{method}")
    declared = {"name", "_target_", "needs", "dependencies"} & rules.keys()
    assert {"name", "_target_", "needs"} <= declared
    assert all(rules[key].fixed for key in declared)


def test_a_key_without_a_rule_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# Mine\nname: mine  # fixed: its name\nweight: 1.0\n")
    monkeypatch.setattr("kdbench.config.groups.CONF", tmp_path)
    monkeypatch.delenv("KDBENCH_PLUGINS", raising=False)
    with pytest.raises(ValueError, match=r"conf/method/mine\.yaml: weight has no rule"):
        rules_of("method/mine")


def test_a_header_has_labels_that_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.config.groups.CONF", tmp_path)
    lines = ["# @package _global_", "# What it is", "# paper: A title", "#   that goes on", "# control: x: a=1 b=2",
             "# Not a label.", "x: 1"]  # fmt: skip
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    head = header("a")
    assert (head["what"], head["paper"], head["control"]) == ("What it is", "A title that goes on", ["x: a=1 b=2"])
    assert (head["year"], head["command"]) == ("", [])
    (tmp_path / "b.yaml").write_text("# What\n# papr: A title\n")
    with pytest.raises(UserError, match="unknown label 'papr'"):
        header("b")


def test_methods_that_cannot_be_added_say_why():
    alone = set(options("method")) - set(addable_methods())
    assert alone == {"bss", "catkd", "ce", "crd", "dml", "lwkd", "one", "srrl", "tfkd_self"}


def test_a_frozen_dictionary_is_a_dictionary_that_cannot_be_changed():
    frozen = FrozenDict.of({"a": {"b": [1, 2]}, "c": 3})
    assert frozen == {"a": {"b": [1, 2]}, "c": 3}
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert {**frozen, "c": 4}["c"] == 4
    for change in (
        lambda: frozen.update(c=4),
        lambda: frozen["a"].pop("b"),
        lambda: frozen.__setitem__("c", 4),
        lambda: frozen.__delitem__("c"),
        lambda: frozen.setdefault("d", 4),
        lambda: frozen.clear(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    ordinary = plain(frozen)
    ordinary["a"]["b"] = 5
    assert type(ordinary["a"]) is dict
    assert frozen["a"]["b"] == [1, 2]

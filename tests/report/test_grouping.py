import json

import pytest

from kdbench.errors import UserError
from kdbench.records.record import all_records
from kdbench.report.collect import collect
from kdbench.report.grouping import agrees, grouping, without_teachers


@pytest.fixture
def frame(tmp_path):
    return lambda: collect(all_records(tmp_path))[0]


def test_methods_with_different_options_are_one_row_each(record, frame):
    for method in ("ce", "kd", "at", "fitnet", "dml", "tfkd_self"):
        for seed in (0, 1):
            record(f"method={method}", seed=seed)
    groups = grouping(frame(), ["method"], ["seed"])
    assert (groups.keys, groups.split) == (["method"], [])


def test_an_option_that_differs_within_a_method_splits_it(record, frame):
    record("method=ce")
    record("method=kd")
    record("method=kd", "method.temperature=2")
    groups = grouping(frame(), ["method"], ["seed"])
    assert (groups.contender, groups.setting, groups.split) == (
        ["method", "method.temperature"], [], ["method.temperature"],
    )  # fmt: skip


def test_noise_splits_by_one_readable_key(record, frame):
    record("method=ce")
    record("method=kd", "noise=symmetric", "noise.rate=0.4")
    record("method=kd", "noise=pairflip", "noise.rate=0.2")
    # the teacher's id and the options of the noise differ, too, but follow from it
    assert grouping(frame(), ["method"], ["seed"]).split == ["noise"]


def test_methods_with_different_recipes_are_separated_even_if_no_row_mixes_them(record, frame):
    record("method=ce", "recipe.epochs=3")
    record("method=kd", "recipe.epochs=5")
    assert grouping(frame(), ["method"], ["seed"]).setting == ["recipe.epochs"]


def test_teachers_split_by_network_and_by_condition(record, frame):
    noisy = ["noise=symmetric", "noise.rate=0.4"]
    record("method=ce", *noisy)
    record("method=kd", *noisy)
    record("method=kd", *noisy, "teacher.condition=clean")
    assert grouping(frame(), ["method"], ["seed"]).split == ["teacher.condition"]
    record("method=kd", *noisy, "teacher=resnet14")
    assert grouping(frame(), ["method"], ["seed"]).split == ["teacher", "teacher.condition"]


def test_the_condition_does_not_split_without_noise_and_imbalance(record, frame):
    record("method=kd", seed=0)
    record("method=kd", "teacher.condition=clean", seed=1)
    assert grouping(frame(), ["method"], ["seed"]).split == []


def test_strict_refuses_and_names_the_keys(record, frame):
    record("method=ce")
    record("method=ce", "noise=symmetric", "noise.rate=0.4")
    with pytest.raises(UserError, match=r"the runs differ in noise: name it in --by, or filter with noise=\.\.\."):
        grouping(frame(), ["method"], ["seed"], strict=True)
    assert grouping(frame(), ["method", "noise"], ["seed"], strict=True).split == []


def test_methods_are_not_averaged_even_if_by_does_not_name_them(record, frame):
    record("method=ce")
    record("method=kd")
    groups = grouping(frame(), ["student"], ["seed"])
    assert groups.keys == ["method", "student"]
    assert groups.split == ["method"]


@pytest.mark.parametrize(("by", "over", "message"), [
    (["metod"], ["seed"], "metod is not a key of these runs; nearest: method"),
    (["seed"], ["seed"], "seed is in both --by and --over"),
])  # fmt: skip
def test_impossible_keys_are_refused(by, over, message, record, frame):
    record("method=ce")
    with pytest.raises(UserError, match=message):
        grouping(frame(), by, over)


def test_a_value_that_does_not_apply_agrees_with_every_value():
    assert agrees(["none", "-"], ["none", "resnet20"])
    assert not agrees(["none", "resnet14"], ["none", "resnet20"])


def test_a_teacher_is_left_out_unless_it_is_also_a_student_trained_alone(record, frame):
    record("method=ce", "student=resnet20", role="teacher")
    record("method=kd")
    assert set(without_teachers(frame(), ["seed"])["method"]) == {"kd"}
    record("method=ce", "student=resnet20", seed=1)
    assert sorted(without_teachers(frame(), ["seed"])["name"]) == [
        "ce-resnet20-digits-s0", "ce-resnet20-digits-s1", "kd-resnet20-resnet8-digits-s0",
    ]  # fmt: skip


def test_records_of_schema_1_are_read(tmp_path, record, frame):
    spec = record("method=lwkd")
    path = spec.directory / "result.json"
    result = json.loads(path.read_text())
    del result["config"]["method"]["dependencies"]
    result["config"]["method"]["needs"] = ["step", "synthetic"]
    path.write_text(json.dumps(result))
    assert list(frame()["method"]) == ["lwkd"]


def test_a_record_of_another_version_is_left_out_with_its_name(tmp_path, record):
    record("method=ce")
    old = record("method=kd")
    text = (old.directory / "result.json").read_text()
    (old.directory / "result.json").write_text(text.replace('"clean_validation": false, ', ""))
    frame, left_out = collect(all_records(tmp_path))
    assert list(frame["method"]) == ["ce"]
    ((left, reason),) = left_out
    assert (left.name, reason) == (old.name, "recorded by another version of kdbench: no key clean_validation")

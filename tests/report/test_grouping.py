import pytest

from kdbench.errors import UserError
from kdbench.records.record import all_records
from kdbench.report.collect import collect
from kdbench.report.grouping import agrees, grouping, without_teachers


@pytest.fixture
def frame(tmp_path):
    return lambda: collect(records(tmp_path))[0]


def test_methods_with_options_of_their_own_are_one_row_each(record, frame):
    for words in (["method=ce"], ["method=kd"], ["method=at"], ["method=fitnet"], ["method=dml"], ["method=tfkd_self"]):
        for seed in (0, 1):
            record(*words, seed=seed)
    found = grouping(frame(), ["method"], ["seed"])
    assert (found.keys, found.split) == (["method"], [])


def test_an_option_that_differs_within_a_method_splits_it(record, frame):
    record("method=ce")
    record("method=kd")
    record("method=kd", "method.temperature=2")
    found = grouping(frame(), ["method"], ["seed"])
    assert (found.contender, found.setting, found.split) == (
        ["method", "method.temperature"], [], ["method.temperature"],
    )  # fmt: skip


def test_noise_splits_by_its_word_alone(record, frame):
    record("method=ce")
    record("method=kd", "noise=symmetric", "noise.rate=0.4")
    record("method=kd", "noise=pairflip", "noise.rate=0.2")
    # that the teacher's id and the kind's own keys differ too follows
    assert grouping(frame(), ["method"], ["seed"]).split == ["noise"]


def test_methods_run_on_different_data_are_told_apart_though_no_row_mixes_them(record, frame):
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


def test_a_condition_without_noise_or_imbalance_splits_nothing(record, frame):
    record("method=kd", seed=0)
    record("method=kd", "teacher.condition=clean", seed=1)
    assert grouping(frame(), ["method"], ["seed"]).split == []


def test_strict_refuses_and_names_the_keys(record, frame):
    record("method=ce")
    record("method=ce", "noise=symmetric", "noise.rate=0.4")
    with pytest.raises(UserError, match="the runs differ in noise: name them in --by"):
        grouping(frame(), ["method"], ["seed"], strict=True)
    assert grouping(frame(), ["method", "noise"], ["seed"], strict=True).split == []


def test_methods_nobody_named_are_not_averaged(record, frame):
    record("method=ce")
    record("method=kd")
    found = grouping(frame(), ["student"], ["seed"])
    assert found.keys == ["method", "student"]
    assert found.split == ["method"]


@pytest.mark.parametrize(("by", "over", "line"), [
    (["metod"], ["seed"], "metod is no key of these runs; nearest: method"),
    (["seed"], ["seed"], "seed is in --by and in --over"),
])  # fmt: skip
def test_keys_that_cannot_be_are_refused(by, over, line, record, frame):
    record("method=ce")
    with pytest.raises(UserError, match=line):
        grouping(frame(), by, over)


def test_what_has_no_meaning_agrees_with_everything():
    assert agrees(["none", "-"], ["none", "resnet20"])
    assert not agrees(["none", "resnet14"], ["none", "resnet20"])


def test_a_teacher_is_left_out_unless_it_is_the_student_alone_of_other_runs(record, frame):
    record("method=ce", "student=resnet20", role="teacher")
    record("method=kd")
    assert set(without_teachers(frame(), ["seed"])["method"]) == {"kd"}
    record("method=ce", "student=resnet20", seed=1)
    assert sorted(without_teachers(frame(), ["seed"])["name"]) == [
        "ce-resnet20-digits-s0", "ce-resnet20-digits-s1", "kd-resnet20-resnet8-digits-s0",
    ]  # fmt: skip


def test_a_record_of_another_version_is_left_out_by_name(tmp_path, record):
    record("method=ce")
    old = record("method=kd")
    text = (old.directory / "result.json").read_text()
    (old.directory / "result.json").write_text(text.replace('"clean_validation": false, ', ""))
    found, left_out = collect(records(tmp_path))
    assert list(found["method"]) == ["ce"]
    ((left, why),) = left_out
    assert (left.name, why) == (old.name, "recorded by another version of kdbench: no key clean_validation")

import math

import pytest

from kdbench.errors import UserError
from kdbench.records.record import all_records
from kdbench.report.collect import collect
from kdbench.report.grouping import grouping, without_teachers
from kdbench.report.metrics import metric
from kdbench.report.settings import matrix
from kdbench.report.study import Plan, study

NOISY = ("noise=symmetric", "noise.rate=0.4")


@pytest.fixture
def studied(tmp_path):
    """`studied(metric, baseline)`: the study of all records written so far."""

    def go(name="test/accuracy", baseline="ce", interval="t", test="t"):
        frame = without_teachers(collect(all_records(tmp_path))[0], ["seed"])
        groups = grouping(frame, ["method"], ["seed"])
        return study(frame, frame, Plan(metric(name), groups, baseline, interval, test))

    return go


def rows(result):
    return {row["method"]: row for row in result.summary.to_dict("records")}


def test_mean_spread_and_interval_by_hand(record, studied):
    for seed, accuracy in enumerate([0.90, 0.92, 0.97]):
        record("method=ce", seed=seed, accuracy=accuracy)
    row = rows(studied())["ce"]
    std = math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2)
    assert (row["n"], row["mean"], row["std"]) == (3, pytest.approx(0.93), pytest.approx(std))
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * std / math.sqrt(3), rel=1e-6)
    assert math.isnan(row["gain"])


def test_gains_are_paired_by_the_seeds_that_both_methods_have(record, studied):
    for seed, accuracy in {0: 0.90, 1: 0.80, 2: 0.70}.items():
        record("method=ce", seed=seed, accuracy=accuracy)
    for seed, accuracy in {1: 0.83, 2: 0.74, 3: 0.10}.items():
        record("method=kd", seed=seed, accuracy=accuracy)
    row = rows(studied())["kd"]
    # seeds 1 and 2: 0.03 and 0.04; t of 1 degree of freedom is 0.035 / (0.00707 / sqrt 2) = 7, p = 1 - 2/pi atan 7
    assert (row["n"], row["pairs"], row["gain"]) == (3, 2, pytest.approx(0.035))
    assert row["p"] == pytest.approx(1 - 2 / math.pi * math.atan(7), rel=1e-6)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(
        (0.035 - 12.7062 * 0.005, 0.035 + 12.7062 * 0.005), rel=1e-4
    )
    assert row["verdict"] == "tie"


def test_the_correction_is_over_the_whole_table(record, studied):
    gains = {"kd": [0.03, 0.031, 0.029], "at": [0.01, 0.02, 0.015], "sp": [0.0, 0.01, -0.01]}
    for seed in range(3):
        record("method=ce", seed=seed, accuracy=0.9)
        for method, gain in gains.items():
            record(f"method={method}", seed=seed, accuracy=0.9 + gain[seed])
    by_method = rows(studied())
    p = {method: by_method[method]["p"] for method in gains}
    assert p["kd"] < p["at"] < p["sp"]
    assert by_method["kd"]["p_holm"] == pytest.approx(3 * p["kd"])
    assert by_method["at"]["p_holm"] == pytest.approx(max(3 * p["kd"], 2 * p["at"]))
    assert by_method["sp"]["p_holm"] == pytest.approx(1.0)
    assert [by_method[method]["verdict"] for method in gains] == ["win", "win", "tie"]


def test_a_lower_loss_is_a_win(record, studied):
    for seed in range(3):
        record("method=ce", seed=seed, test={"nll": 0.5})
        record("method=kd", seed=seed, test={"nll": 0.3 + 0.01 * seed})
    row = rows(studied("test/nll"))["kd"]
    assert row["gain"] == pytest.approx(-0.19)
    assert row["verdict"] == "win"


def test_the_student_alone_pairs_with_either_condition_of_the_teacher(record, studied):
    for seed in range(2):
        record("method=ce", *NOISY, seed=seed, accuracy=0.8)
        record("method=kd", *NOISY, seed=seed, accuracy=0.7 + seed / 100)
        record("method=kd", *NOISY, "teacher.condition=clean", seed=seed, accuracy=0.9 + seed / 100)
    result = studied()
    gains = {row["teacher.condition"]: row["gain"] for row in result.summary.to_dict("records")}
    assert gains["same"] == pytest.approx(-0.095)
    assert gains["clean"] == pytest.approx(0.105)
    assert math.isnan(gains["-"])
    assert len(matrix(result.summary, result.plan.grouping, "mean").dropna()) == 2  # ce is in the settings of both


def test_another_baseline_pairs_by_teacher_too(record, studied):
    for condition, accuracy in (("same", 0.7), ("clean", 0.9)):
        for seed in range(2):
            record("method=kd", *NOISY, f"teacher.condition={condition}", seed=seed, accuracy=accuracy)
            record(
                "method=at", *NOISY, f"teacher.condition={condition}", seed=seed, accuracy=accuracy + 0.01 * (1 + seed)
            )
    summary = studied(baseline="kd").summary
    assert list(summary[summary["method"] == "at"]["gain"]) == pytest.approx([0.015, 0.015])


def test_an_ambiguous_baseline_is_refused(record, studied):
    record("method=ce")
    record("method=kd")
    record("method=kd", "method.temperature=2")
    record("method=at")
    with pytest.raises(UserError, match=r"--baseline kd is ambiguous: .* choose between them with a filter"):
        studied(baseline="kd")


def test_without_noise_and_imbalance_the_condition_is_both(record, studied):
    record("method=ce")
    record("method=kd", "teacher.condition=clean")
    assert [row["teacher.condition"] for row in rows(studied()).values()] == ["-", "same/clean"]


def test_runs_without_the_metric_are_named_and_no_run_with_it_is_an_error(record, studied):
    record("method=ce")
    record("method=kd", fidelity={"agreement": 0.9, "kl": 0.1})
    result = studied("fidelity/agreement")
    assert list(rows(result)) == ["kd"]
    assert result.missing == ["ce-resnet8-digits-s0"]
    with pytest.raises(UserError, match="none of these 2 runs has it"):
        studied("test/top5")


def test_two_runs_that_agree_in_every_key_are_not_averaged(tmp_path, record, studied):
    spec = record("method=ce")
    duplicate = spec.directory.with_name("ce-resnet8-digits-s0-0123456789ab")
    duplicate.mkdir()
    (duplicate / "result.json").write_bytes((spec.directory / "result.json").read_bytes())
    with pytest.raises(UserError, match="are different runs that agree in every key, including seed"):
        studied()


def test_only_contenders_with_all_settings_are_ranked(record, studied):
    accuracies = {"ce": (0.90, 0.80), "kd": (0.95, 0.75), "at": (0.97, 0.70), "sp": (0.99, None)}
    for method, pair in accuracies.items():
        for noise, accuracy in zip(((), NOISY), pair, strict=True):
            for seed in range(2):
                if accuracy:
                    record(f"method={method}", *noise, seed=seed, accuracy=accuracy + seed / 1000)
    result = studied()
    assert result.unranked == ["sp"]
    ranks = {row["contender"]: row for row in result.ranks.to_dict("records")}
    # best first, clean: at kd ce; noisy: ce kd at
    assert {name: row["rank"] for name, row in ranks.items()} == {"ce": 2.0, "kd": 2.0, "at": 2.0}
    # both seeds gain the same, so the interval is a point: at wins on clean data and loses on noisy data
    assert (ranks["at"]["win"], ranks["at"]["tie"], ranks["at"]["loss"]) == (1, 0, 1)
    assert result.friedman == pytest.approx(1.0)


def test_what_was_selected_on_test_is_in_separate_columns(record, studied):
    each = {"student": {"accuracy": 0.80}, "peer1": {"accuracy": 0.85}}
    record("method=ce", accuracy=0.80, best_on_test={"accuracy": 0.88, "epoch": 3, "selection_rule": False})
    record("method=dml", accuracy=0.80, members={"each": each, "best": {"accuracy": 0.85, "selected_on_test": True}})
    by_method = rows(studied())
    assert (by_method["ce"]["mean"], by_method["ce"]["best_epoch"]) == (0.80, 0.88)
    assert (by_method["dml"]["mean"], by_method["dml"]["best_member"]) == (0.80, 0.85)
    assert math.isnan(by_method["dml"]["best_epoch"])


def test_rows_are_sorted_by_setting_then_baseline_first_then_best_first(record, studied):
    for imbalance, accuracy in (
        (("imbalance=longtail", "imbalance.factor=20"), 0.5),
        ((), 0.8),
        (("imbalance=longtail", "imbalance.factor=5"), 0.6),
    ):
        record("method=ce", *imbalance, accuracy=accuracy)
        record("method=at", *imbalance, accuracy=accuracy + 0.01)
        record("method=kd", *imbalance, accuracy=accuracy + 0.02)
    summary = studied().summary
    assert list(summary["imbalance"]) == ["none"] * 3 + ["longtail5"] * 3 + ["longtail20"] * 3
    assert list(summary["method"]) == ["ce", "kd", "at"] * 3

"""Which controls a method has, and when it beats them."""

import json

import pytest

from kdbench import cli
from kdbench.config.overrides import from_overrides
from kdbench.sweeps.controls import compare, controls_of
from tests.helpers.tiny import TINY


def controls(*words):
    return controls_of(from_overrides(list(words)))


def test_every_control_composes():
    for method in ("kd", "skd", "lwkd", "tfkd_self", "tfkd_reg", "rkd", "ls", "dml"):
        itself = from_overrides([f"method={method}"])
        for words in controls(f"method={method}").values():
            control = from_overrides([f"method={method}", *words] if words[0][:7] != "method=" else words)
            assert control != itself


def test_controls_follow_from_what_the_method_needs():
    teacher = ["student alone", "label smoothing", "teacher with random weights", "teacher stopped at epoch 3",
               "answers shuffled in the batch", "answers shuffled in the class"]  # fmt: skip
    assert list(controls("method=kd", "recipe=quick")) == [*teacher, "teacher of the student's kind"]
    assert list(controls("method=skd", "recipe=quick")) == [*teacher, "teacher of the student's kind", "kd"]
    assert list(controls("method=tfkd_self", "recipe=quick")) == teacher
    assert list(controls("method=ls")) == ["student alone"]
    assert list(controls("method=lwkd")) == ["student alone", "label smoothing", "another class map",
                                             "targets by hand", "kd"]  # fmt: skip
    from_file = controls("method=kd", "teacher.checkpoint=x.safetensors")
    assert not [what for what in from_file if "random" in what or "stopped" in what or "kind" in what]


def test_a_comparison_is_paired_and_says_when_it_resolves_nothing():
    better = compare("x", [0.90, 0.80, 0.70], [0.89, 0.79, 0.69])
    assert (better.gain, better.half_width) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert better.verdict == "yes"
    assert compare("x", [0.89, 0.79, 0.69], [0.90, 0.80, 0.70]).verdict == "no"
    loose = compare("x", [0.91, 0.80, 0.70], [0.89, 0.79, 0.70])
    # mean 1, standard deviation 1, t(0.975, 2) = 4.3027
    assert loose.half_width == pytest.approx(4.302653 / 3**0.5)
    assert loose.verdict == "not resolved"
    alone = compare("x", [0.9], [0.1])
    assert (alone.verdict, alone.half_width) == ("not resolved", None)


def test_the_command(tmp_path, capsys):
    path = tmp_path / "figures.json"
    words = [*TINY, f"outputs={tmp_path}", "recipe.epochs=1", "method=skd", "method.softening=2"]
    assert cli.main(["controls", "--seeds", "0,1", "--json", str(path), *words]) == 0
    figures = json.loads(path.read_text())
    assert figures["method"] == "skd"
    assert [row["name"] for row in figures["controls"]] == list(controls("method=skd", "recipe.epochs=1"))
    assert all(len(row["accuracies"]) == 2 for row in figures["controls"])
    shown = capsys.readouterr().out
    assert "does skd beat it?" in shown


def test_seeds_that_are_none_are_said_in_a_line(capsys):
    assert cli.main(["controls", "--seeds", "0,x", "method=kd"]) == 2
    assert "--seeds 0,x is not allowed" in capsys.readouterr().err


def test_what_has_no_controls_is_said_in_a_line(capsys):
    assert cli.main(["controls", "method=ce"]) == 2
    assert "nothing to control for" in capsys.readouterr().err

"""Finished runs are measured again, from their records alone."""

import json

import numpy as np
import pytest
import torch

from kdbench import cli
from kdbench.errors import UserError
from kdbench.evaluation.attacks import EPS
from kdbench.files import read_json, read_lines
from kdbench.records.record import Record
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import data_of
from kdbench.training.conduct import conduct
from kdbench.training.evaluate import chosen_runs, evaluate
from tests.helpers.tiny import TINY

NOISY = [*TINY, "noise=symmetric", "noise.rate=0.3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return conduct(spec_of([*NOISY, f"outputs={outputs}"])), outputs


@pytest.fixture
def evaluated(finished):
    run, _ = finished

    def go(*, attack=False, images=None, folder=None):
        path = run.directory / "evaluation.json"
        path.unlink(missing_ok=True)
        options = ["--attacks"] * attack + ([] if images is None else ["--images", str(images)])
        options += [] if folder is None else ["--corruptions", folder]
        assert cli.main(["evaluate", str(run.directory), *options]) == 0
        return read_json(path)

    return go


def test_what_is_measured_at_the_end_of_a_run_is_found_again(finished, evaluated):
    run, _ = finished
    result, found = run.result, evaluated()
    assert found["test"] == {**result["test"], "nll": pytest.approx(result["test"]["nll"], rel=1e-6)}
    assert found["fidelity"] == result["fidelity"]
    last = list(read_lines(run.metrics))[-1]
    assert found["noisy"] == {key.split("/")[1]: value for key, value in last.items() if key.startswith("noisy/")}
    assert found["noisy"].keys() == {"wrong", "true", "teacher"}
    assert "attacks" not in found


def test_attacks_are_the_same_each_time_and_weaker_than_none(finished, evaluated):
    run, _ = finished
    found = evaluated(attack=True)["attacks"]
    assert (found["eps"], found["images"]) == (EPS, 40)
    assert found["pgd_accuracy"] <= run.result["test"]["accuracy"]
    assert found["fgsm_accuracy"] <= run.result["test"]["accuracy"]
    assert 0 <= found["transfer_count"] <= 40
    assert evaluated(attack=True)["attacks"] == found
    assert evaluated(attack=True, images=33)["attacks"]["images"] == 33


def test_further_measures_join_earlier_ones(finished, monkeypatch):
    run, outputs = finished
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(outputs))
    assert cli.main(["evaluate", run.id, "--attacks", "--images", "8"]) == 0
    assert cli.main(["evaluate", run.directory.name]) == 0
    assert read_json(run.directory / "evaluation.json")["attacks"]["images"] == 8


def test_corrupted_images_are_scored_by_severity(finished, evaluated, tmp_path):
    run, outputs = finished
    data = data_of(spec_of([*NOISY, f"outputs={outputs}"]))
    images = torch.cat([batch.images for batch in data.test_dataloader()]).permute(0, 2, 3, 1)
    clean = (images * 255).round().byte().numpy()
    ruined = np.zeros_like(clean)
    np.save(tmp_path / "labels.npy", np.tile(data.test_labels, 5))
    np.save(tmp_path / "fog.npy", np.concatenate([clean, clean, ruined, ruined, ruined]))
    found = evaluated(folder=str(tmp_path))["corruptions"]
    accuracy = run.result["test"]["accuracy"]
    constant = found["accuracies"]["fog"][2]  # one class for every black image
    assert found["accuracies"]["fog"] == pytest.approx([accuracy, accuracy, constant, constant, constant])
    assert constant in {count / 40 for count in np.bincount(data.test_labels)}
    assert found["summary"]["accuracy"] == pytest.approx((2 * accuracy + 3 * constant) / 5)
    assert found["summary"]["averaged"] == ["fog"]


def test_without_its_teacher_a_student_is_measured_alone(tmp_path):
    run = conduct(spec_of([*TINY, "recipe.epochs=1", f"outputs={tmp_path}"]))
    teacher = next((tmp_path / "runs").glob("ce-*"))
    teacher.rename(tmp_path / "elsewhere")
    assert cli.main(["evaluate", str(run.directory), "--attacks", "--images", "8"]) == 0
    evaluation = read_json(run.directory / "evaluation.json")
    assert evaluation["fidelity"] is None
    assert "transferability" not in evaluation["attacks"]


def test_what_is_no_finished_run_is_refused(finished, tmp_path, capsys):
    run, outputs = finished
    with pytest.raises(UserError, match="abc is no run"):
        chosen_runs(["abc"], outputs)
    begun = tmp_path / "runs" / "ce-x-0123456789ab"
    begun.mkdir(parents=True)
    (begun / "status.json").write_text(json.dumps({"state": "failed"}))
    with pytest.raises(UserError, match="is failed; only finished"):
        chosen_runs([str(begun)], outputs)
    assert cli.main(["evaluate", str(run.directory), "--images", "0"]) == 2
    assert "--images 0 is not allowed" in capsys.readouterr().err


def test_a_data_set_that_has_changed_is_refused(finished, monkeypatch):
    run, _ = finished
    monkeypatch.setattr("kdbench.records.record.Record.result", {**run.finished, "labels_hash": "other"})
    with pytest.raises(UserError, match="not what it was trained on"):
        evaluate(Record(run.directory), False, None, None)


def test_a_record_of_another_version_is_refused(finished, monkeypatch):
    run, _ = finished
    older = {key: value for key, value in run.finished.items() if key != "sizes"}
    monkeypatch.setattr("kdbench.records.record.Record.result", older)
    with pytest.raises(UserError, match="recorded by another version of kdbench"):
        evaluate(Record(run.directory), False, None, None)

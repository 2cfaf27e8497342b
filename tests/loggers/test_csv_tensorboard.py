"""The local mirrors, CSV and TensorBoard, hold the whole history, also after a resume."""

import json
import logging

import pytest

from kdbench import loggers
from kdbench.errors import UserError
from tests.helpers.mirrors import info


def test_csv_has_the_whole_history_after_a_resume(tmp_path):
    source, target = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"

    def attempt(rows: list[dict[str, float]]) -> None:
        mirror = loggers.start({"kind": "csv"}, info(tmp_path))
        for row in rows:
            with source.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            mirror.log({}, int(row["epoch"]))
        assert target.read_text().count("\n") == 1 + source.read_text().count("\n")
        mirror.finish({}, 0)

    attempt([{"train/loss": 1.5, "epoch": 0}])
    attempt([{"epoch": 1, "train/loss": 0.5, "val/accuracy": 0.25}])
    assert target.read_text() == "epoch,train/loss,val/accuracy\n0,1.5,\n1,0.5,0.25\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_csv_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n')
    (tmp_path / "metrics.csv").mkdir()
    with caplog.at_level(logging.WARNING, "kdbench"):
        mirror = loggers.start({"kind": "csv"}, info(tmp_path))
        mirror.log({}, 0)
        mirror.log({}, 1)
        mirror.finish({}, 0)
    (message,) = caplog.messages
    assert message.startswith("csv mirror is off for this run: log: IsADirectoryError")


def test_tensorboard_has_each_epoch_once_after_a_resume(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    for epochs, shift in ((range(4), 0.0), (range(2, 5), 100.0)):  # the second attempt repeats epochs 2 and 3
        mirror = loggers.start({"kind": "tensorboard"}, info(tmp_path))
        for epoch in epochs:
            mirror.log({"train/loss": epoch + shift}, epoch)
        if shift:
            mirror.finish({"test": {"accuracy": 0.5}, "best": None, "note": "text"}, 0)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(0, 0.0), (1, 1.0), (2, 102.0), (3, 103.0), (4, 104.0)]
    assert events.Scalars("final/test/accuracy")[0].value == 0.5
    assert events.Tags()["scalars"] == ["train/loss", "final/test/accuracy"]

    # an attempt that has no epoch left to train keeps the history
    mirror = loggers.start({"kind": "tensorboard"}, info(tmp_path))
    mirror.finish({"test": {"accuracy": 0.75}}, 0)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss")) == 5
    assert events.Scalars("final/test/accuracy")[-1].value == 0.75


def test_missing_tensorboard_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install kdbench\[tensorboard\]"):
        loggers.check({"kind": "tensorboard"})

"""The lock, the status and the files of a run's directory."""

import json
import multiprocessing
import time

import pytest

from kdbench.errors import UserError
from kdbench.records.record import Record
from kdbench.records.writer import RecordWriter


@pytest.fixture
def writer(tmp_path):
    return RecordWriter(tmp_path / "runs" / "ce-resnet8-digits-s0-0123456789ab")


def status(writer):
    return json.loads((writer.record.directory / "status.json").read_text())


def test_status_tells_how_it_ended(writer):
    with writer.claimed():
        with writer.recorded({"a": 1}):
            assert status(writer)["state"] == "running"
        assert status(writer)["state"] == "finished"
        with pytest.raises(ZeroDivisionError), writer.recorded({"a": 1}):
            _ = 1 / 0
        assert (status(writer)["state"], status(writer)["reason"]) == ("failed", "ZeroDivisionError: division by zero")
        assert "Traceback" in (writer.record.directory / "train.log").read_text()
        with pytest.raises(KeyboardInterrupt), writer.recorded({"a": 1}):
            raise KeyboardInterrupt
        assert status(writer)["state"] == "interrupted"


def test_force_keeps_the_old_record(writer):
    with writer.claimed():
        with writer.recorded({"a": 1}):
            pass
        writer.set_aside()
        assert not (writer.record.directory / "status.json").exists()
        (old,) = (writer.record.directory / "previous").iterdir()
        assert (old / "status.json").exists()
        assert writer.record.checkpoints.is_dir()
        with writer.recorded({"a": 1}):
            pass
        writer.set_aside()  # within the same second
        assert len(list((writer.record.directory / "previous").glob("*/status.json"))) == 2


def _hold(writer, started, seconds):
    with writer.claimed():
        started.set()
        time.sleep(seconds)


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_and_a_dead_owners_lock_is_free(writer, killed):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    owner = context.Process(target=_hold, args=(writer, started, 60 if killed else 1.5))
    owner.start()
    started.wait(60)
    if killed:
        owner.kill()
    before = time.monotonic()
    with writer.claimed():
        waited = time.monotonic() - before
    owner.join()
    assert waited < 10
    assert killed or waited > 0.5


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), RecordWriter(tmp_path / "file" / "a-1").claimed():
        pass


def test_the_rows_after_a_checkpoint_are_dropped_and_a_result_finishes_the_run(writer):
    with writer.claimed():
        for epoch in range(3):
            writer.add_metrics({"epoch": epoch})
        writer.restart_metrics(row for row in writer.record.epochs if row["epoch"] < 2)
        writer.add_metrics({"epoch": 2, "again": True})
        assert Record(writer.record.directory).state == "running"
        writer.finish({"config": {}})
    assert writer.record.epochs == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2, "again": True}]
    assert Record(writer.record.directory).state == "finished"


def test_what_is_evaluated_later_joins_what_was_evaluated_before(writer):
    writer.record.directory.mkdir(parents=True)
    writer.add_evaluation({"test": 1})
    writer.add_evaluation({"attacks": 2})
    assert Record(writer.record.directory).evaluation == {"test": 1, "attacks": 2}

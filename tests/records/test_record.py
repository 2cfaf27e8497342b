import json

from filelock import FileLock

from kdbench.records.record import Record, all_records


def _run(outputs, name="ce-resnet8-digits-s0-0123456789ab", **files):
    directory = outputs / "runs" / name
    directory.mkdir(parents=True)
    for file, content in files.items():
        (directory / f"{file}.json").write_text(json.dumps(content))
    return directory


def test_a_finished_run_is_finished_whatever_its_status_says(tmp_path):
    directory = _run(tmp_path, status={"state": "running"}, result={"config": {"seed": 3}})
    record = Record(directory)
    assert (record.state, record.name, record.id) == ("finished", "ce-resnet8-digits-s0", "0123456789ab")
    assert record.config == {"seed": 3}


def test_running_is_what_holds_its_lock(tmp_path):
    directory = _run(tmp_path, status={"state": "running"})
    with FileLock(directory / ".lock"):
        assert Record(directory).state == "running"
    assert Record(directory).state == "interrupted"


def test_other_states_come_from_the_status(tmp_path):
    assert Record(_run(tmp_path, "a-1", status={"state": "failed"})).state == "failed"
    new = Record(_run(tmp_path, "b-2"))
    assert (new.state, new.config, new.status, new.epochs) == ("new", {}, {}, [])


def test_the_configuration_of_an_unfinished_run_is_read_from_its_file(tmp_path):
    directory = _run(tmp_path)
    (directory / "config.yaml").write_text("method:\n  name: kd\n")
    assert Record(directory).config == {"method": {"name": "kd"}}


def test_records_come_by_name_and_nothing_else_does(tmp_path):
    assert list(all_records(tmp_path)) == []
    _run(tmp_path, "b-2")
    _run(tmp_path, "a-1")
    (tmp_path / "runs" / "note-1.txt").write_text("")
    assert [record.name for record in all_records(tmp_path)] == ["a", "b"]

"""`kdbench sync` sends offline runs completely, each of them once, and names those that it could not send."""

from pathlib import Path

from filelock import FileLock

from kdbench import cli
from kdbench.loggers import wandb_sync
from kdbench.records.record import Record, all_records
from tests.helpers.mirrors import script
from tests.helpers.wandb_files import first_attempts


def test_runs_arrive_complete_and_are_not_sent_again(outputs, account, monkeypatch, capfd, tmp_path_factory):
    monkeypatch.setenv("WANDB_MODE", "offline")  # as when the runs were recorded
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert cli.main(["sync"]) == 0
    assert not list(Path().iterdir())
    assert "5 of 5 sent" in capfd.readouterr().out
    expected = first_attempts(outputs)
    assert set(account.history) == {run.run.run_id for run in expected.values()}
    for run in expected.values():
        rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in account.history[run.run.run_id]]
        assert rows == run.history
        assert account.runs[run.run.run_id]["groupName"] == run.run.run_group
        assert account.runs[run.run.run_id]["project"] == "kdbench"

    account.history.clear()
    assert cli.main(["sync"]) == 0
    assert "runs to send: 0," in capfd.readouterr().out
    assert not account.history


def test_a_run_that_the_server_refuses_is_named_and_sent_the_next_time(outputs, account, capfd):
    refused = next(all_records(outputs))
    account.refused = {refused.id}
    assert cli.main(["sync", "--project", "other", "--entity", "us"]) == 1
    output = capfd.readouterr()
    assert "no such project" in output.err
    assert [line for line in output.out.splitlines() if line.startswith("not sent")] == [
        f"not sent, see wandb's errors above: {refused.directory}"
    ]
    assert "4 of 5 sent" in output.out
    assert {(run["project"], run["entity"]) for run in account.runs.values()} == {("other", "us")}

    account.refused = set()
    account.history.clear()
    assert cli.main(["sync"]) == 0
    assert "1 of 1 sent" in capfd.readouterr().out
    assert set(account.history) == {refused.id}


def test_running_and_replaced_runs_are_not_sent(outputs, capfd):
    first, second, *rest = all_records(outputs)
    previous = second.directory / "previous" / "2026-01-01_00-00-00-1"
    previous.mkdir(parents=True)
    (second.directory / "wandb").rename(previous / "wandb")
    with FileLock(first.directory / ".lock"):
        assert cli.main(["sync", "--dry-run"]) == 0
    output = capfd.readouterr().out
    assert "runs to send: 3," in output
    assert "still running, not sent until they end: 1\n" in output
    assert "replaced by force=true, not sent: 1\n" in output
    for record in rest:
        assert record.directory.name in output
    assert f"\n{first.directory.name}" not in output
    assert f"\n{second.directory.name}" not in output


def test_without_a_key_nothing_is_sent(outputs, capfd):
    assert cli.main(["sync"]) == 2
    assert capfd.readouterr().err == "error: W&B has no key: `wandb login` stores one, or set WANDB_API_KEY\n"
    assert not list(outputs.rglob("*.synced"))


def test_with_nothing_to_send_no_key_is_needed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(tmp_path))
    assert cli.main(["sync"]) == 0
    assert capfd.readouterr().out == f"offline W&B runs to send: 0, below {tmp_path}\n"


def test_all_epochs_of_a_killed_and_resumed_run_are_sent(account, tmp_path, monkeypatch, capfd):
    attempts = """
import json, time
directory = outputs / "runs" / "kd-s0-0123456789ab"
def attempt(epochs, **changes):
    mirror = loggers.start(OPTIONS, info(directory, **changes))
    for epoch in epochs:
        with (directory / "metrics.jsonl").open("a") as rows:
            rows.write(json.dumps({"epoch": epoch, "stage": "train", "train/loss": 1 / (epoch + 1)}) + "\\n")
        mirror.log({"train/loss": 1 / (epoch + 1)}, epoch)
    mirror.finish({}, 0)
attempt(range(2))
time.sleep(1.1)  # the name of wandb's folder has a resolution of one second
attempt(range(2, 4))
"""
    (tmp_path / "other").mkdir()
    done = script(attempts, tmp_path / "other", WANDB_MODE="offline")
    first, _ = sorted(done.outputs.glob("runs/*/wandb/offline-run-*/*.wandb"))
    first.write_bytes(first.read_bytes()[:7])  # as SIGKILL leaves it
    monkeypatch.setenv("KDBENCH_OUTPUTS", str(done.outputs))
    assert cli.main(["sync"]) == 0
    assert "1 of 1 sent" in capfd.readouterr().out
    rows = account.history["0123456789ab"]
    assert [(row["epoch"], row["_step"], row["train/loss"]) for row in rows] == [
        (0, 0, 1),
        (1, 1, 1 / 2),
        (2, 2, 1 / 3),
        (3, 3, 1 / 4),
    ]
    assert "stage" not in rows[0]
    assert cli.main(["sync"]) == 0
    assert "runs to send: 0," in capfd.readouterr().out


def test_a_killed_run_is_not_sent_and_the_message_says_why(outputs, account, capfd):
    killed = next(all_records(outputs))
    (killed.directory / "result.json").unlink()
    (killed.directory / "status.json").write_text('{"state": "running"}')
    file = wandb_sync.unsent(killed.directory)
    file.write_bytes(file.read_bytes()[:7])
    assert cli.main(["sync"]) == 1
    output = capfd.readouterr().out
    assert f"{killed.directory} (interrupted: resume it, and send it when it has finished)\n" in output
    assert "4 of 5 sent" in output


def test_the_newest_attempt_is_the_one_to_send(tmp_path):
    def attempt(name):
        file = tmp_path / "wandb" / f"{name}-0123456789ab" / "run-0123456789ab.wandb"
        file.parent.mkdir(parents=True)
        file.touch()
        return file

    assert wandb_sync.unsent(tmp_path) is None
    attempt("offline-run-20260102_000000")
    newest = attempt("offline-run-20260103_000000")
    attempt("offline-run-20260101_235959")
    (tmp_path / "wandb" / "latest-run").symlink_to(newest.parent)
    assert wandb_sync.unsent(tmp_path) == newest
    newest.with_suffix(".wandb.synced").touch()
    assert wandb_sync.unsent(tmp_path) is None
    newer = attempt("offline-run-20260104_000000")
    assert wandb_sync.unsent(tmp_path) == newer
    attempt("run-20260105_000000")  # this attempt was online
    assert wandb_sync.unsent(tmp_path) is None


def test_a_run_that_was_forced_again_has_another_id(tmp_path):
    directory = tmp_path / "kd-s0-0123456789ab"
    directory.mkdir()
    assert Record(directory).attempt == "0123456789ab"
    for previous in ("a", "b"):
        (directory / "previous" / previous).mkdir(parents=True)
    assert Record(directory).attempt == "0123456789ab-3"

"""The report of a GPU, tried out on the CPU: every part, and what happens when a part fails, hangs or dies."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """Scripts are no package: they import what lies beside them."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def script(name):
    """A fixture of a script."""
    return pytest.fixture(name=name.rpartition(".")[2])(lambda: importlib.import_module(name))


gpu_report, parts = script("gpu_report"), script("gpu_parts.parts")
correctness, cifar100 = script("gpu_parts.correctness"), script("gpu_parts.cifar100")


@pytest.fixture
def plan(parts, tmp_path):
    return parts.Plan(True, tmp_path / "out")


DRAWS = {
    "rand": lambda x: torch.rand(4, device=x.device),
    "rand_like": torch.rand_like,
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "multinomial": lambda x: (0 * x + 1).multinomial(1),
    "dropout": lambda x: F.dropout(0 * x + 1),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_are_those_of_the_cpu(correctness, draw):
    x = torch.ones(4)
    torch.manual_seed(3)
    expected = draw(x)
    torch.manual_seed(3)
    with correctness.SameDraws():
        assert torch.equal(draw(x), expected)


def test_another_device_draws_from_the_generator_of_the_cpu(correctness):
    torch.manual_seed(3)
    torch.rand(4)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with correctness.SameDraws():
        assert torch.rand(4, device="meta").is_meta
    assert torch.equal(torch.rand(1), expected)


def stage(loss, gradient):
    return {"losses": {"ce": torch.tensor(loss)}, "gradients": {"weight": torch.tensor(gradient)}}


def test_differences_are_relative_and_the_largest_of_all_stages(correctness):
    expected = [stage(2.0, [3.0, 4.0]), stage(1.0, [3.0, 4.0])]
    actual = [stage(2.2, [3.0, 4.0]), stage(1.0, [3.0, 4.5])]
    assert correctness.largest_difference(actual, expected) == pytest.approx((0.1, 0.1))


def test_what_is_not_finite_differs_infinitely(correctness):
    assert correctness.largest_difference([stage(float("nan"), [1.0])], [stage(1.0, [1.0])]) == (float("inf"), 0.0)


def test_a_missing_gradient_is_an_error(correctness):
    with pytest.raises(ValueError, match="gradients"):
        correctness.largest_difference([{**stage(1.0, [1.0]), "gradients": {}}], [stage(1.0, [1.0])])


def test_a_device_that_computes_something_else_is_wrong(correctness, parts, plan, monkeypatch):
    compute = correctness.losses_and_gradients
    times = iter((1.0, 1.01))

    def changed(spec, device):
        stages, method = compute(spec, device)
        factor = next(times)
        return [{**each, "losses": {k: factor * v for k, v in each["losses"].items()}} for each in stages], method

    monkeypatch.setattr(correctness, "losses_and_gradients", changed)
    outcome = correctness.compare_devices(plan, "ce", parts.Time(9, 9))
    assert not outcome.good
    assert outcome.figures["loss_difference"] == pytest.approx(0.01, rel=1e-3)


def test_the_same_device_computes_the_same(correctness, parts, plan):
    outcome = correctness.compare_devices(plan, "ce", parts.Time(9, 9))
    assert outcome.good
    assert outcome.figures["loss_difference"] == outcome.figures["gradient_difference"] == 0.0


def rows(parts, plan, *works, seconds=20.0):
    tasks = [parts.Task(str(number), work) for number, work in enumerate(works)]
    return parts.rows_of("mine", parts.Part(1.0, lambda _: tasks), plan, seconds)


def fine(parts):
    return lambda available: parts.Outcome("fine", {"seconds": available.share})


def broken(_):
    raise ValueError("too bad")


def test_a_failure_is_a_row_and_the_next_task_goes_on(parts, plan):
    first, second, third = rows(parts, plan, broken, lambda _: parts.Outcome("slow", good=False), fine(parts))
    assert (first.state, second.state, third.state) == ("failed", "wrong", "done")
    assert "too bad" in first.text
    assert "Traceback" in (plan.out / "mine.log").read_text()


def test_each_task_has_its_share_of_the_time(parts, plan):
    shares = [row.figures["seconds"] for row in rows(parts, plan, fine(parts), fine(parts))]
    assert shares == pytest.approx([9.5, 19.0], abs=1.0)


def test_a_process_that_dies_is_a_row(parts, plan):
    done, dead, never = rows(parts, plan, fine(parts), lambda _: os._exit(3), fine(parts))
    assert (done.state, dead.state, never.state) == ("done", "failed", "skipped")
    assert "exit code 3" in dead.text


def test_a_part_is_stopped_with_what_it_has_started(parts, plan):
    child = plan.out / "child"

    def hang(_):
        process = subprocess.Popen(["sleep", "60"])
        child.write_text(str(process.pid))
        process.wait()

    start = time.monotonic()
    hung, never = rows(parts, plan, hang, fine(parts), seconds=2.0)
    assert time.monotonic() - start < 10
    assert (hung.state, never.state) == ("stopped", "skipped")
    status = Path(f"/proc/{child.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_tasks_without_time_are_skipped(parts, plan):
    _, late = rows(parts, plan, lambda _: time.sleep(1.2) or parts.Outcome(""), fine(parts), seconds=1.25)
    assert late.state == "skipped"


@pytest.mark.parametrize(("left", "epochs"), [(200.0, 8), (10**6, 240)])
def test_the_schedule_fits_into_the_time(cifar100, parts, tmp_path, monkeypatch, left, epochs):
    monkeypatch.setattr(cifar100, "seconds_per_epoch", lambda spec, rounds, steps: 4.0)
    training = cifar100.Training(parts.Plan(False, tmp_path, ("dataset=fake",)))
    outcome = training.schedule(parts.Time(left, left))
    assert outcome.good
    assert training.epochs == epochs  # 80 % of what is left after 75 s for three starts, 12 s an epoch
    assert ("not comparable" in outcome.text) == (epochs < 240)


def test_without_time_for_an_epoch_nothing_is_trained(cifar100, parts, plan, monkeypatch):
    monkeypatch.setattr(cifar100, "seconds_per_epoch", lambda spec, rounds, steps: 40.0)
    training = cifar100.Training(plan)
    assert not training.schedule(parts.Time(100, 100)).good
    assert "not begun" in training.train("kd", parts.Time(100, 100)).text


def test_a_training_is_stopped_in_time(cifar100, parts, plan):
    training = cifar100.Training(plan)
    training.epochs = 240
    start = time.monotonic()
    outcome = training.train("kd", parts.Time(1, 1))
    assert time.monotonic() - start < 10
    assert not outcome.good
    assert outcome.figures["kd"]["epochs"] == 0
    assert "of 240 epochs" in outcome.text


def test_without_a_gpu_only_the_machine_is_described(gpu_report, correctness, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "environment", lambda: {"gpu": None})
    assert gpu_report.main(["--out", str(tmp_path)]) == 1
    assert "no CUDA device" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 1


def test_an_unknown_part_is_refused(gpu_report, capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--parts", "timing"])
    assert "timing must be one of machine" in capsys.readouterr().err


@pytest.mark.slow
def test_the_smoke_form_does_every_part(gpu_report, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "gpu_report.py"), "--smoke", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert {row["state"] for row in rows} == {"done"}, done.stdout
    assert {row["part"] for row in rows} == set(gpu_report.PARTS)
    assert "SMOKE FORM ON THE CPU" in done.stdout
    assert done.returncode == 0

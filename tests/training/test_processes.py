"""Runs as processes: killed, interrupted, racing, on devices that are not there."""

import contextlib
import json
import signal
import time

import pytest
import torch

from kdbench.errors import UserError
from kdbench.training import signals
from tests.helpers.tiny import launch, same


def test_kill_9_and_the_same_command_again(whole, words, tmp_path):
    for target in ("ce", "kd"):  # the teacher's training, then the student's
        process = launch(words())
        deadline = time.monotonic() + 100
        while process.poll() is None and not list(tmp_path.glob(f"outputs/runs/{target}-*/checkpoints/*.ckpt")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    process = launch(words())
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    (path,) = tmp_path.glob("outputs/runs/kd-*/result.json")
    assert same(json.loads(path.read_text())) == same(whole[1].finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_noted_and_says_how_to_go_on(words, tmp_path, number):
    process = launch(words("recipe.epochs=500"))
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("outputs/runs/ce-*/checkpoints/*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output
    assert "Traceback" not in output
    (file,) = tmp_path.glob("outputs/runs/ce-*/status.json")
    assert json.loads(file.read_text())["state"] == "interrupted"


def test_two_processes_want_the_same_run(whole, words, tmp_path):
    processes = [launch(words()) for _ in range(2)]
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("waiting for" in output for output in outputs) >= 1
    assert sum("already done" in output for output in outputs) >= 1
    (path,) = tmp_path.glob("outputs/runs/kd-*/result.json")
    assert same(json.loads(path.read_text())) == same(whole[1].finished)
    assert len(list(tmp_path.glob("outputs/runs/*"))) == 2


def test_a_sweep_in_one_process(words, tmp_path):
    process = launch(["-m", "method=ce,kd", *words("recipe.epochs=1", "trainer.progress=lines")])
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 3  # teacher, alone, distilled


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_whose_exception_was_dropped_stops_the_run_at_the_end_of_the_epoch(whole, tiny, number, kind):
    tiny("method=ce", "student=resnet14")  # the teacher
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        signals.arrive(number, None)
    with pytest.raises(kind):
        tiny()
    run = tiny()
    assert len(list(run.checkpoints.glob("*.ckpt"))) == 2
    assert same(run.result) == same(whole[1].finished)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_half_precision_on_the_cpu_is_refused_not_replaced(tiny):
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed needs a CUDA device"):
        tiny("trainer.precision=16-mixed")


def test_bfloat16_trains_and_is_another_run(whole, tiny):
    run = tiny("trainer.precision=bf16-mixed")
    assert run.id != whole[0].id
    assert run.finished["test"]["nll"] != whole[1].finished["test"]["nll"]


@pytest.mark.slow
def test_compiled_networks_learn_the_same(whole, tiny):
    run = tiny("trainer.compile=true")
    assert run.id == whole[0].id
    assert run.finished["test"]["nll"] == pytest.approx(whole[1].finished["test"]["nll"], rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said_before_anything_is_touched(words, tmp_path):
    process = launch(words("trainer=gpu"))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert output.startswith("error: trainer.device=gpu")
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

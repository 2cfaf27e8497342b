"""Training as a whole: what the loop costs the device."""

import pytest
import torch

from kdbench.config.groups import options
from kdbench.training import fit
from tests.helpers.methods import batch_of, method_of, step

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


def test_an_epoch_reads_no_more_from_the_device_for_having_more_steps(tiny, monkeypatch):
    count = 0

    def counted(original):
        def read(self, *args, **kwargs):
            nonlocal count
            count += 1
            return original(self, *args, **kwargs)

        return read

    assess = fit.assess

    def after_training(*args):  # reads as often as its search for a temperature has steps
        nonlocal count
        before = count
        found = assess(*args)
        count = before
        return found

    monkeypatch.setattr(fit, "assess", after_training)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    counts = []
    for steps in (2, 4):
        count = 0
        tiny("recipe.batch_size=8", f"trainer.max_batches={steps}", "teacher.cache=never")
        counts.append(count)
    assert counts[0] == counts[1] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", options("method"))
def test_a_cuda_step_does_not_synchronise(name):
    method = method_of(name).to("cuda")
    batch = batch_of(device="cuda")
    step(method, batch).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(method, batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""Rules about the step and about a training that is interrupted."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.conformance.networks import tensors
from kdbench.conformance.subject import Rule, RuleBroken, Subject, must
from kdbench.conformance.toys import batch_of, each_stage, fit, step
from kdbench.data.streams import derive
from kdbench.methods.machinery.module import DistillationModule
from kdbench.training.callbacks import EpochStart


def no_wait(subject: Subject) -> None:
    """A step never waits for the device."""
    # Tensors on the meta device have no values: whatever tries to read one, in any way, raises an error.
    method = subject.attached().to("meta")
    with ExitStack() as patches:
        nothing: dict[str, Any] = {
            "__init__": lambda self, *_, **__: None, "__enter__": lambda self: self, "__exit__": lambda self, *_: None,
        }  # fmt: skip
        patches.enter_context(mock.patch.multiple(torch.autocast, **nothing))  # it does not support that device
        for log in ("log", "log_dict"):
            patches.enter_context(mock.patch.object(method, log))
        for _ in each_stage(method):
            for seed in range(2):
                try:
                    loss = step(method, batch_of(seed=seed, device="meta"))
                except Exception as error:  # torch has many for this
                    raise RuleBroken("a step on a device without values, which shows what reads them, fails") from error
            device, shape = loss.device.type, tuple(loss.shape)
            must((device, shape) == ("meta", ()), f"the loss has shape {shape} on {device}: no scalar on the device")
    try:
        method.loss_meter.means(0)
    except (RuntimeError, NotImplementedError) as error:
        must("meta" in str(error), f"the means of the losses fail with {error}")
    else:
        raise RuleBroken("the means of the losses hold values that were read from the device during the step")


def no_logging(subject: Subject) -> None:
    """Training logs nothing with Lightning, which would drop it; values to record are in `watched`."""
    method = subject.attached()
    with ExitStack() as patches:
        logs = [patches.enter_context(mock.patch.object(method, name)) for name in ("log", "log_dict")]
        fit(method)
        for _ in each_stage(method):
            step(method, batch_of())
    logged = [repr(call.args[0]) for log in logs for call in log.call_args_list if call.args]
    must(not any(log.called for log in logs), f"it logs {', '.join(dict.fromkeys(logged))}: put it into self.watched")


_WHY = "is there state that is neither a parameter nor a buffer?"


class _Streams(EpochStart):
    """Starts the random stream of every epoch anew, as in a run."""

    def start(self, trainer: pl.Trainer, method: DistillationModule) -> None:
        torch.manual_seed(derive(0, "training", trainer.current_epoch))


class _EpochEnds(pl.Callback):
    """Keeps the means of the losses, and a checkpoint of each epoch if there is a folder for them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.means: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        epoch = trainer.current_epoch
        self.means[epoch] = pl_module.loss_meter.means(epoch)
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{epoch}.ckpt")


def resumption(subject: Subject) -> None:
    """A training that continues from a checkpoint repeats the unbroken one bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        method = subject.attached()
        unbroken = _EpochEnds(Path(folder))
        expected = _left_by(method, fit(method, _Streams(), unbroken))
        for epoch in range(method.total_epochs - 1):
            method = subject.attached()
            method.enter_epoch(epoch)  # the state of its optimiser is in the checkpoint
            continued = _EpochEnds()
            trainer = fit(method, _Streams(), continued, checkpoint=Path(folder) / f"{epoch}.ckpt")
            what = f"continued after epoch {epoch + 1} of {method.total_epochs}"
            for later, means in continued.means.items():
                for name, mean in means.items():
                    other = unbroken.means[later][name]
                    must(mean == other, f"{what}, the loss {name} is {mean:.9g} instead of {other:.9g}: {_WHY}")
            left = _left_by(method, trainer)
            must(left.keys() == expected.keys(), f"{what}, it ends with other tensors")
            changed = [key for key in expected if not torch.equal(left[key], expected[key])]
            must(not changed, f"{what}, {', '.join(changed[:3])} differ: {_WHY}")


def _left_by(method: DistillationModule, trainer: pl.Trainer) -> dict[str, Tensor]:
    """All tensors of a method and its optimisers at the end of a training."""
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    parts = {"method": method.state_dict(), "buffers": dict(method.named_buffers()), "optimizers": optimizers}
    return {key: tensor.clone() for key, tensor in tensors(parts)}


RULES = tuple(map(Rule.of, (no_wait, no_logging, resumption)))

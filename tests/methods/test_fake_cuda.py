"""Where the tensors of a step are: methods, loader and attacks on a CUDA device that is only imitated.

`FakeTensorMode` computes devices and shapes without a GPU. It refuses operations on two devices, and those that need
values on the host. The engine of autograd needs a real device, so no loss is differentiated here, and the gradient of
an attack has the shape and the device of its images, but no value.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.config.groups import options
from kdbench.data.augmentation import Covering
from kdbench.data.batch import Part, Training
from kdbench.data.mixing import Mixing
from kdbench.data.resident import ResidentLoader
from kdbench.evaluation.attacks import fgsm, pgd, robust_accuracy, transferability
from tests.helpers.methods import batch_of, method_of, step

METHODS = options("method")
STAGED = ["fitnet", "fsp"]
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Mixed(AssertionError):
    """An operation has tensors on two devices."""


class OneDevice(TorchDispatchMode):
    """Refuses operations on two devices, copies among them, for which the host waits.

    The only exception is a number on the CPU that is no copy: it becomes an argument of the kernel.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or operation in COPIES}
        if len(devices) > 1:
            raise Mixed(f"{operation}: {sorted(devices)}")
        return result


@contextmanager
def one_device(mode):
    with mode, OneDevice():
        yield


@pytest.fixture
def mode():
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def gradients_without_values(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs: (torch.empty_like(inputs),))


def on_cuda(tensor, mode):
    """A tensor of the same kind on the imitated device."""
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def move(network, mode):
    """Put parameters and buffers on the imitated device; tensors that are neither stay where they are."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(on_cuda(value, mode), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = on_cuda(value, mode)
    return network


def moved_method(mode, name, *overrides):
    method = move(method_of(name, *overrides), mode)
    if method.teacher is not None:
        move(method.teacher, mode)
    return method


def moved_batch(mode):
    batch = batch_of()
    return batch._make(None if field is None else on_cuda(field, mode) for field in batch)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.cpu(), Mixed),
        (lambda x: torch.tensor(1.0, device=x.device), Mixed),
        (lambda x: x[torch.arange(2)], Mixed),
        (lambda x: x + torch.ones(4), RuntimeError),
    ],
    ids=["value", "shape", "to the host", "from the host", "index", "operand"],
)
def test_what_makes_the_host_wait_is_refused(mode, wrong, error):
    tensor = on_cuda(torch.ones(4), mode)
    with one_device(mode), pytest.raises(error):
        wrong(tensor)


@pytest.mark.parametrize("case", [*METHODS, *(f"{name} method.training=staged" for name in STAGED)])
@pytest.mark.usefixtures("gradients_without_values")
def test_steps_and_predictions_stay_on_the_device(mode, case):
    method, batch = moved_method(mode, *case.split()), moved_batch(mode)
    epoch = 0
    for stage in method.stages:
        method.enter_epoch(epoch)
        method.on_train_epoch_start()
        epoch += stage.recipe["epochs"]
        with one_device(mode):
            assert step(method, batch).is_cuda
    with one_device(mode), torch.no_grad():
        assert all(logits.is_cuda for logits in method.predictions(batch.images).values())


@pytest.mark.parametrize("order", ["batch", "class"])
def test_shuffled_features_stay_on_the_device(mode, order):
    method, batch = moved_method(mode, "kd"), moved_batch(mode)
    method.shuffle = order
    with one_device(mode):
        assert step(method, batch).is_cuda


def loader_on_cuda(mode, training):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    part = Part(images, np.arange(40) % 4, np.arange(40))
    loader = ResidentLoader(part, 8, "meta", training)
    for name, value in vars(loader).items():
        if isinstance(value, torch.Tensor) and value.is_meta:
            setattr(loader, name, on_cuda(value, mode))
    loader.device = torch.device("cuda")
    return loader


@pytest.mark.parametrize("training", [None, Training(0, 1, "zero", True)])
def test_batches_after_the_first_are_made_on_the_device(mode, training):
    loader = loader_on_cuda(mode, training)
    with mode:
        batches = iter(loader)
        next(batches)  # order, crops and flips of the whole epoch are copied to the device
    with one_device(mode):
        batch = next(batches)
    assert all(tensor.is_cuda for tensor in batch[:3])


@pytest.mark.parametrize(
    "change",
    [
        lambda device: Covering(0.5, 0, (0.5,), 8, 0, device),
        lambda device: Covering(0.0, 2, (0.5,), 8, 0, device),
        lambda device: Mixing(1.0, 0.0, 8, 0, device),
        lambda device: Mixing(0.0, 1.0, 8, 0, device),
    ],
    ids=["erasing", "cutout", "mixup", "cutmix"],
)
def test_batches_after_the_first_are_changed_on_the_device(mode, change):
    batch = moved_batch(mode)
    with mode:
        batches = change(torch.device("cuda"))(iter([batch] * 3), 0, 3, 8)
        next(batches)  # what is drawn for the whole epoch is copied to the device
    with one_device(mode):
        assert next(batches).images.is_cuda


@pytest.mark.usefixtures("gradients_without_values")
def test_attacks_stay_on_the_device(mode):
    method, batch = moved_method(mode, "kd"), moved_batch(mode)
    student, teacher = method.forward, method.teacher.logits
    with mode:
        attacked = pgd(student, batch.images, batch.labels, torch.Generator(), steps=2)  # starts at a point of the host
    with one_device(mode):
        assert fgsm(student, batch.images, batch.labels).is_cuda
        tallies = [
            robust_accuracy(student, attacked, batch.labels),
            transferability(teacher, student, batch.images, attacked, batch.labels),
        ]
        assert all(tally.hits.is_cuda and tally.count.is_cuda for tally in tallies)

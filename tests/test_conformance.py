"""The rules every method keeps. A new method is here as soon as it has a file in `conf/method/`."""

import copy
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from torch import nn

from kdbench import config
from kdbench.data.batch import Batch
from kdbench.models.build import build
from kdbench.models.features import Features, Shapes

METHODS = config.options("method")
SIZES = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}


def options(name):
    cfg, _ = config.composed([f"method={name}", "recipe.epochs=2", "recipe.batch_size=8"])
    return cfg


def method_of(name, student=None, teacher=None):
    """The method with its default options, attached to small real networks (or to those given)."""
    cfg = options(name)
    own = {key: value for key, value in cfg["method"].items() if key not in ("name", "needs", "_target_")}
    torch.manual_seed(0)
    student = student or build("resnet8", **SIZES)
    teacher = teacher or build("resnet14", **SIZES)
    needed = "teacher" in cfg["method"]["needs"]
    return get_class(cfg["method"]["_target_"])(**own).attach(student, teacher if needed else None, None, cfg["recipe"])


def batch_of(count=8, classes=4, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Batch(images.to(device), labels.to(device), torch.arange(count, device=device))


class Loader:
    """Three batches an epoch."""

    def __len__(self):
        return 3

    def __iter__(self):
        return (batch_of(seed=i) for i in range(3))


def fit(method, *callbacks, epochs=2):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(method, Loader(), Loader())
    return trainer


class Toy(nn.Module):
    """A network that is nothing but its features, so that a test can set them."""

    def __init__(self, features):
        super().__init__()
        self.logits = nn.Parameter(features.logits)
        self.stages = nn.ParameterList(features.stages)
        self.embedding = nn.Parameter(features.embedding)
        self.shapes = Shapes([tuple(s.shape[1:]) for s in features.stages], features.embedding.shape[1],
                             features.logits.shape[1])  # fmt: skip

    def forward(self, images):
        return Features(list(self.stages), self.embedding, self.logits)


def features_of(count, classes, seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randn(count, c, s, s, generator=generator) for c, s in ((4, 8), (4, 8), (8, 4), (16, 2))]
    logits = scale * torch.randn(count, classes, generator=generator).sign()
    noise = torch.randn(count, classes, generator=generator)
    logits = logits if scale > 1 else noise
    embedding = torch.randn(count, 16, generator=generator)
    return Features([s.to(dtype) for s in stages], embedding.to(dtype), logits.to(dtype))


def toy_method(name, count=6, classes=4, **how):
    return method_of(name, Toy(features_of(count, classes, 1, **how)), Toy(features_of(count, classes, 2, **how)))


@pytest.mark.parametrize("name", METHODS)
def test_teacher_is_untouched_by_an_epoch(name):
    method = method_of(name)
    if method.teacher is None:
        pytest.skip("has no teacher")
    before = copy.deepcopy(method.teacher.state_dict())
    assert before, "the teacher has parameters and buffers"

    class Watch(pl.Callback):
        modes = ()

        def on_train_batch_end(self, *_):
            self.modes += tuple(module.training for module in method.teacher.modules())

    watch = Watch()
    fit(method, watch)
    method.train()
    method.teacher.train()
    assert watch.modes
    assert not any(watch.modes)
    assert not any(module.training for module in method.teacher.modules())
    after = method.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_student_is_in_train_mode_again_after_validation(name):
    method = method_of(name)

    class Watch(pl.Callback):
        training, validating = (), ()

        def on_train_batch_start(self, *_):
            self.training += tuple(module.training for module in method.student.modules())

        def on_validation_batch_start(self, *_):
            self.validating += tuple(module.training for module in method.student.modules())

    watch = Watch()
    fit(method, watch)
    assert watch.training
    assert all(watch.training)
    assert watch.validating
    assert not any(watch.validating)


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_every_student_parameter(name):
    method = method_of(name)
    before = [p.detach().clone() for p in method.student.parameters()]
    fit(method, epochs=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_loss_of_a_batch_twice_is_the_loss_of_the_batch(name):
    once = toy_method(name)
    if not once.per_sample:
        pytest.skip("compares the samples of a batch with each other")

    def twice(features):
        stages, embedding, logits = features
        return Features([torch.cat([s, s]) for s in stages], torch.cat([embedding] * 2), torch.cat([logits] * 2))

    torch.manual_seed(0)
    double = method_of(name, Toy(twice(features_of(6, 4, 1))), Toy(twice(features_of(6, 4, 2))))
    double.load_state_dict({k: v for k, v in once.state_dict().items() if "student" not in k}, strict=False)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    index, images = torch.arange(6), torch.zeros(6, 1, 8, 8)
    small = once.terms(Batch(images, labels, index))
    large = double.terms(Batch(images.repeat(2, 1, 1, 1), labels.repeat(2), index.repeat(2)))
    assert small.keys() == large.keys()
    for key in small:
        torch.testing.assert_close(small[key], large[key])


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_what_is_trained_and_nothing_else(name):
    method = method_of(name)
    method.training_step(batch_of(), 0).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert any(p.grad.abs().sum() > 0 for p in method.student.parameters())
    if method.teacher is not None:
        assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_another_teacher_gives_another_gradient(name):
    method = method_of(name)
    if method.teacher is None:
        pytest.skip("has no teacher")

    def gradient():
        method.zero_grad()
        method.training_step(batch_of(), 0).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters()])

    method.student.eval()  # batch statistics aside, only the teacher differs
    first, again = gradient(), gradient()
    assert torch.equal(first, again)
    for parameter in method.teacher.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert not torch.allclose(first, gradient())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_saturated_logits_are_finite_under_autocast(name, dtype):
    method = toy_method(name, scale=6e4, dtype=dtype)
    batch = Batch(torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 0]), torch.arange(6))
    with torch.autocast("cpu", dtype):
        terms = method.terms(batch)
        total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert {key: term.dtype for key, term in terms.items()} == dict.fromkeys(terms, torch.float32)
    assert {key: bool(torch.isfinite(term)) for key, term in terms.items()} == dict.fromkeys(terms, True)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize(("classes", "labels"), [(2, [0, 1, 0, 0, 0, 0]), (2, [1] * 6), (5, [0, 0, 0, 0, 0, 3])])
@pytest.mark.parametrize("name", METHODS)
def test_two_classes_and_unequal_counts_work(name, classes, labels):
    method = toy_method(name, classes=classes)
    loss = method.training_step(Batch(torch.zeros(6, 1, 8, 8), torch.tensor(labels), torch.arange(6)), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(method.student.logits.grad).all()


@pytest.mark.parametrize("name", METHODS)
def test_train_only_modules_are_optimised_and_not_exported(name):
    method = method_of(name)
    (optimizer,), _ = method.configure_optimizers()
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in method.parameters() if p.requires_grad}
    assert method.export().keys() == method.student.net.state_dict().keys()
    total = sum(p.numel() for p in method.parameters())
    assert method.extra_parameters() == total - sum(p.numel() for p in method.student.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_teacher_is_in_no_checkpoint_and_checkpoints_load_without_unpickling(name, tmp_path):
    method = method_of(name)
    trainer = fit(method, epochs=1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "teacher" in key]
    method_of(name).load_state_dict(state)


@pytest.mark.parametrize("name", METHODS)
def test_the_step_never_syncs_with_the_host_and_logs_nothing(name, monkeypatch):
    # on the meta device there are no values: whatever would read one, by any road, is an error
    method = method_of(name).to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know that device
    for log in ("log", "log_dict"):
        monkeypatch.setattr(method, log, lambda *_, **__: pytest.fail("logged in a step"))
    for step in range(2):
        loss = method.training_step(batch_of(seed=step, device="meta"), step)
    assert (loss.device.type, loss.shape) == ("meta", ())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        method.meter.means(0)  # which does read values


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_named(name):
    from kdbench.methods.base import NonFiniteLoss

    method = toy_method(name)
    batch = Batch(torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 0]), torch.arange(6))
    method.training_step(batch, 0)
    with torch.no_grad():
        method.student.logits[0, 0] = float("nan")
    method.training_step(batch, 1)
    with pytest.raises(NonFiniteLoss, match=r"loss term 'ce' is not finite at epoch 7, step 1"):
        method.meter.means(7)

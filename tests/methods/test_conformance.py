"""The rules that every method keeps. A new method is tested here as soon as it has a file in `conf/method/`."""

import copy
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_class

from kdbench.config.groups import addable_methods, content, options
from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.evaluation.passes import score, score_student
from kdbench.methods.machinery.meter import NonFiniteLoss
from kdbench.methods.method import Method
from kdbench.models.features import Features
from tests.helpers.methods import (
    Loader,
    Toy,
    attached,
    batch_of,
    config_of,
    features_of,
    fit,
    method_of,
    step,
    total,
    toy_method,
)

METHODS = options("method")
WITH_TEACHER = [name for name in METHODS if "teacher" in content(f"method/{name}")["needs"]]
LABELS = torch.tensor([0, 1, 2, 3, 0, 0])


def toy_batch(labels=LABELS):
    """A batch for toy networks, which ignore the images."""
    return Batch(torch.zeros(len(labels), 1, 8, 8), labels, torch.arange(len(labels)))


@pytest.mark.parametrize("name", METHODS)
def test_class_has_a_teacher_if_the_yaml_asks_for_one(name):
    method = get_class(content(f"method/{name}")["_target_"])
    assert issubclass(method, Method) == (name in WITH_TEACHER)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_teacher_is_unchanged_by_an_epoch(name):
    method = method_of(name)
    before = copy.deepcopy(method.teacher.state_dict())
    assert before, "the teacher has no parameters and buffers"

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
def test_networks_are_in_eval_mode_while_scored_and_in_train_mode_again_afterwards(name):
    method = method_of(name)
    modes_in_scoring, modes_in_training = [], []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            modes_in_training.extend(module.training for module in method.modules())

        def on_train_epoch_end(self, trainer, _):
            def predict(images):
                modes_in_scoring.extend(module.training for module in method.modules())
                return method.predictions(images)

            scores = score(trainer, method, Loader(), predict)
            assert all(0 <= classifier["accuracy"] <= 1 for classifier in scores.values())
            assert scores["student"] == score_student(trainer, method, Loader())

    fit(method, Watch())
    assert modes_in_training
    assert all(modes_in_training)
    assert modes_in_scoring
    assert not any(modes_in_scoring)


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_every_parameter(name):
    method = method_of(name)
    before = [p.detach().clone() for p in method.parameters()]
    fit(method)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_loss_of_a_doubled_batch_is_the_loss_of_the_batch(name):
    single = toy_method(name)
    if not single.per_sample:
        pytest.skip("compares the samples of a batch with each other")

    def twice(features):
        stages, embedding, logits = features
        return Features([torch.cat([s, s]) for s in stages], torch.cat([embedding] * 2), torch.cat([logits] * 2))

    double = method_of(name, student=Toy(twice(features_of(6, 4, 1))), teacher=Toy(twice(features_of(6, 4, 2))))
    train_only = {k: v for k, v in single.state_dict().items() if not k.startswith(("student", "peers"))}
    double.load_state_dict(train_only, strict=False)
    if hasattr(single, "bank"):  # the same targets for both, and for both halves
        double.bank, single.pairing, double.pairing = single.bank, "fixed", "fixed"
    images, labels, index = toy_batch()
    for number in range(len(single.stages)):
        single.stage, double.stage = single.stages[number], double.stages[number]
        torch.manual_seed(0)
        expected = single.batch_losses(Batch(images, labels, index))
        torch.manual_seed(0)
        losses = double.batch_losses(Batch(images.repeat(2, 1, 1, 1), labels.repeat(2), index.repeat(2)))
        assert losses.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(losses[key], expected[key])


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_what_is_trained_and_nothing_else(name):
    method = method_of(name)
    for stage in method.stages:
        method.stage = stage
        step(method, batch_of()).backward()
        assert any(p.grad.abs().sum() > 0 for p in method.student.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    if method.teacher is not None:
        assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_another_teacher_gives_another_gradient(name):
    method = method_of(name)

    def gradient():
        method.zero_grad()
        torch.manual_seed(0)
        step(method, batch_of()).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])

    method.student.eval()  # fixed batch statistics, so that only the teacher differs
    first, again = gradient(), gradient()
    assert torch.equal(first, again)
    for parameter in method.teacher.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert not torch.allclose(first, gradient())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_saturated_logits_are_finite_under_autocast(name, dtype):
    method = toy_method(name, scale=6e4, dtype=dtype)
    for stage in method.stages:
        method.stage = stage
        with torch.autocast("cpu", dtype):
            losses = method.batch_losses(toy_batch())
            loss = total(losses)
        loss.backward()
        assert {key: loss.dtype for key, loss in losses.items()} == dict.fromkeys(losses, torch.float32)
        assert {key: bool(torch.isfinite(loss)) for key, loss in losses.items()} == dict.fromkeys(losses, True)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize(("classes", "labels"), [(2, [0, 1, 0, 0, 0, 0]), (2, [1] * 6), (5, [0, 0, 0, 0, 0, 3])])
@pytest.mark.parametrize("name", METHODS)
def test_two_classes_and_unequal_counts_work(name, classes, labels):
    method = toy_method(name, classes=classes)
    for stage in method.stages:
        method.stage = stage
        loss = step(method, toy_batch(torch.tensor(labels)))
        loss.backward()
        assert torch.isfinite(loss)
    assert torch.isfinite(method.student.logits.grad).all()


@pytest.mark.parametrize("name", METHODS)
def test_train_only_modules_are_optimised_and_not_exported(name):
    method = method_of(name)
    optimizers, schedules = method.configure_optimizers()
    optimised = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert len(optimizers) == len(schedules)
    assert method.export().keys() == method.student.net.state_dict().keys()
    trained = sum(p.numel() for p in method.parameters())
    assert method.extra_parameters() == trained - sum(p.numel() for p in method.student.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_teacher_is_in_no_checkpoint_and_checkpoints_load_without_unpickling(name, tmp_path):
    method = method_of(name)
    trainer = fit(method)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "teacher" in key]
    method_of(name).load_state_dict(state)


@pytest.mark.parametrize("name", METHODS)
def test_the_step_never_syncs_with_the_host_and_logs_nothing(name, monkeypatch):
    # Tensors on the meta device have no values: whatever tries to read one, in any way, raises an error.
    method = method_of(name).to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not support that device
    for log in ("log", "log_dict"):
        monkeypatch.setattr(method, log, lambda *_, **__: pytest.fail("logged in a step"))
    for stage in method.stages:
        method.stage = stage
        method.loss_meter.reset()
        for seed in range(2):
            loss = step(method, batch_of(seed=seed, device="meta"))
        assert (loss.device.type, loss.shape) == ("meta", ())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        method.loss_meter.means(0)  # this does read values


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_named(name):
    method = toy_method(name)
    method.stage = method.stages[-1]
    step(method, toy_batch())
    with torch.no_grad():
        method.student.logits[0, 0] = float("nan")
    step(method, toy_batch())
    with pytest.raises(NonFiniteLoss, match=r"loss term 'ce' is not finite at epoch 7, step 1"):
        method.loss_meter.means(7)


@pytest.mark.parametrize(("name", "added"), [(n, a) for n in METHODS for a in addable_methods() if a != n])
def test_every_addable_loss_works_with_every_method_or_says_why_not(name, added):
    others = [other for other in addable_methods() if other != name]
    config = config_of(name, f"plus=[{','.join(others)}]")
    options = config["plus"][added]
    if options.get("training") == "staged":
        with pytest.raises(UserError, match=rf"plus=\[{added}\] is not possible: .* plus.{added}.training=joint"):
            attached({**config, "plus": {added: options}})
        options = {**options, "training": "joint"}
    method = attached({**config, "plus": {added: options}})
    method.enter_epoch(method.total_epochs - 1)
    losses = method.batch_losses(batch_of())
    added_losses = {key: loss for key, loss in losses.items() if key.startswith(f"plus_{added}")}
    assert added_losses
    assert len(losses) > len(added_losses)
    total(added_losses).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())

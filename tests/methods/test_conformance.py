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
from kdbench.errors import UserError
from kdbench.evaluation.passes import score, score_student
from kdbench.training.callbacks import Stages
from kdbench.methods.lwkd import Bank
from kdbench.models._base import StagedNetwork
from kdbench.models.build import build
from kdbench.models.features import Features, Shapes

METHODS = options("method")
SIZES = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}


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
def test_networks_are_in_eval_mode_while_scored_and_in_train_mode_again_afterwards(name):
    method = method_of(name)
    scored, trained = [], []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            trained.extend(module.training for module in method.modules())

        def on_train_epoch_end(self, trainer, _):
            def predict(images):
                scored.extend(module.training for module in method.modules())
                return method.predictions(images)

            found = score(trainer, method, Loader(), predict)
            assert all(0 <= each["accuracy"] <= 1 for each in found.values())
            assert found["student"] == score_student(trainer, method, Loader())

    fit(method, Watch())
    assert trained
    assert all(trained)
    assert scored
    assert not any(scored)


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_every_parameter(name):
    method = method_of(name)
    before = [p.detach().clone() for p in method.parameters()]
    fit(method)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


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
    trained = {k: v for k, v in once.state_dict().items() if not k.startswith(("student", "peers"))}
    double.load_state_dict(trained, strict=False)
    if hasattr(once, "bank"):  # the same answers for both, and for both halves
        double.bank, once.pairing, double.pairing = once.bank, "fixed", "fixed"
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    index, images = torch.arange(6), torch.zeros(6, 1, 8, 8)
    for number in range(len(once.stages)):
        once.stage, double.stage = once.stages[number], double.stages[number]
        torch.manual_seed(0)
        small = once.terms(Batch(images, labels, index))
        torch.manual_seed(0)
        large = double.terms(Batch(images.repeat(2, 1, 1, 1), labels.repeat(2), index.repeat(2)))
        assert small.keys() == large.keys()
        for key in small:
            torch.testing.assert_close(small[key], large[key])


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


@pytest.mark.parametrize("name", METHODS)
def test_another_teacher_gives_another_gradient(name):
    method = method_of(name)
    if method.teacher is None:
        pytest.skip("has no teacher")

    def gradient():
        method.zero_grad()
        torch.manual_seed(0)
        step(method, batch_of()).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])

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
    for stage in method.stages:
        method.stage = stage
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
    for stage in method.stages:
        method.stage = stage
        loss = step(method, Batch(torch.zeros(6, 1, 8, 8), torch.tensor(labels), torch.arange(6)))
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
    total = sum(p.numel() for p in method.parameters())
    assert method.extra_parameters() == total - sum(p.numel() for p in method.student.parameters())


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
    # on the meta device there are no values: whatever would read one, by any road, is an error
    method = method_of(name).to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know that device
    for log in ("log", "log_dict"):
        monkeypatch.setattr(method, log, lambda *_, **__: pytest.fail("logged in a step"))
    for stage in method.stages:
        method.stage = stage
        method.meter.reset()
        for seed in range(2):
            loss = step(method, batch_of(seed=seed, device="meta"))
        assert (loss.device.type, loss.shape) == ("meta", ())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        method.meter.means(0)  # which does read values


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_named(name):
    from kdbench.methods.base import NonFiniteLoss

    method = toy_method(name)
    batch = Batch(torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 0]), torch.arange(6))
    method.stage = method.stages[-1]
    step(method, batch)
    with torch.no_grad():
        method.student.logits[0, 0] = float("nan")
    step(method, batch)
    with pytest.raises(NonFiniteLoss, match=r"loss term 'ce' is not finite at epoch 7, step 1"):
        method.meter.means(7)


PAIRS = [(name, added) for name in METHODS for added in METHODS
         if added not in ("ce", name) and not {"step", "self"} & set(needs(added))]  # fmt: skip


@pytest.mark.parametrize(("name", "added"), PAIRS)
def test_every_addable_loss_works_on_every_method_or_says_why_not(name, added):
    cfg = from_overrides([f"method={name}", f"plus=[{added}]", "recipe.epochs=2", "recipe.batch_size=8"])

    def make(node):
        return get_class(node["_target_"])(**{k: v for k, v in node.items() if k not in ("name", "needs", "_target_")})

    torch.manual_seed(0)
    student, teacher = build("resnet8", **SIZES), build("resnet14", **SIZES)

    def attached():
        method = make(cfg["method"])
        method.bank = Bank(torch.randn(8, 4), torch.arange(8) % 4)
        return method.attach(student, teacher, {added: make(cfg["plus"][added])}, cfg["recipe"],
                             lambda other, number: build(other or "resnet8", **SIZES))  # fmt: skip

    if cfg["plus"][added].get("training") == "staged":
        with pytest.raises(UserError, match=rf"plus=\[{added}\] is not possible: .* plus.{added}.training=joint"):
            attached()
        cfg["plus"][added]["training"] = "joint"
    method = attached()
    method.enter(method.epochs - 1)
    terms = method.terms(batch_of())
    own = [key for key in terms if key.startswith(f"plus_{added}")]
    assert own
    assert len(terms) > len(own)
    torch.stack([terms[key] for key in own]).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())

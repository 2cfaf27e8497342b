"""Mixed labels: the methods that declare to take them do, and the others are refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from torch.nn import functional as F

from kdbench.config.groups import addable_methods, content, options
from kdbench.conformance.promises import mixed_values
from kdbench.conformance.subject import Subject
from kdbench.conformance.suite import RULES, verdict
from kdbench.data.batch import Batch, Mixed
from kdbench.errors import UserError
from kdbench.methods.method import Method, MethodWithoutTeacher
from tests.helpers.methods import SIZES, attached, batch_of, config_of, fill_bank, network_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "dkd"
METHODS = options("method")
(RULE,) = (rule for rule in RULES if rule.name == "mixed_labels")
CLASSES = {name: get_class(content(f"method/{name}")["_target_"]) for name in METHODS}
TAKES = {name: each.mixed_labels for name, each in CLASSES.items()}
MIXED = [name for name in METHODS if TAKES[name]]
REFUSED = [name for name in METHODS if not TAKES[name]]
VARIANTS = [
    *((name, ()) for name in MIXED), ("fitnet", ("method.training=staged",)), ("fsp", ("method.training=joint",)),
    ("dml", ("method.updates=alternating",)), ("skd", ("method.anchor=1.0",)), ("ls", ("method.variant=paper",)),
    ("kd", ("plus=[at,ls]",)),
]  # fmt: skip
SHARE = 0.3


def mixed_batch():
    """A batch with two labels for each image."""
    batch = batch_of()
    return batch._replace(mixed=Mixed((batch.labels + 1) % 4, torch.tensor(SHARE)))


def with_recipe(name, *overrides, **recipe):
    """A method with a changed recipe, without composing a configuration anew."""
    config = config_of(name, *overrides)
    return attached({**config, "recipe": {**config["recipe"], **recipe}})


@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_every_loss_of_a_mixed_batch_is_the_weighted_mean_of_those_for_both_labels(name, overrides):
    smoothed = not {name, *overrides} & {"ls", "plus=[at,ls]"}  # which smooth the labels themselves
    config = config_of(name, *overrides)
    recipe = {**config["recipe"], "mixup": 0.2, "label_smoothing": 0.1 if smoothed else 0.0}
    _, state, why = verdict(RULE, Subject({**config, "recipe": recipe}, receive=fill_bank))
    assert state == "holds", why


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_does_not_declare_it_would_lose_the_second_label(name):
    method = attached(config_of(name, "student=resnet14"))
    if method.teacher is not None:  # bss reads only labels that both networks predict
        method.student.load_state_dict(method.teacher.network.state_dict())
    method.student.eval()
    batch = batch_of()
    batch = batch._replace(labels=method.student(batch.images).logits.argmax(1))
    assert [key for key, (value, mean) in mixed_values(method, batch).items() if not torch.isclose(value, mean)]


def test_methods_that_split_or_choose_by_the_label_do_not_declare_it():
    assert {"bss", "crd", "lwkd", "rld", "tfkd_reg"} == set(REFUSED)
    assert not Method.mixed_labels
    assert not MethodWithoutTeacher.mixed_labels


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
@pytest.mark.parametrize("name", REFUSED)
def test_mixing_is_refused_where_a_method_does_not_declare_it(name, key):
    with pytest.raises(UserError, match=rf"recipe\.{key}=0\.5 is not possible with \w+, only 0: ") as caught:
        with_recipe(name, **{key: 0.5})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", addable_methods())
def test_mixing_is_refused_where_an_added_loss_does_not_declare_it(name):
    joint = [f"plus.{name}.training=joint"] if "training" in content(f"method/{name}") else []
    words = ["kd" if name != "kd" else "ce", f"plus=[{name}]", *joint]
    if TAKES[name]:
        assert with_recipe(*words, mixup=0.5).plus
    else:
        with pytest.raises(UserError, match=rf"recipe\.mixup=0\.5 is not possible with plus=\[{name}\], only 0: "):
            with_recipe(*words, mixup=0.5)


def test_the_example_of_a_plugin_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from kdbench_dkd.dkd import DKD

    config = config_of("kd")
    student, teacher = (network_of(config[group], SIZES) for group in ("student", "teacher"))
    with pytest.raises(UserError, match=r"recipe\.cutmix=1\.0 is not possible with DKD, only 0: "):
        DKD(4.0, 1.0, 8.0, 20).attach(student, teacher, recipe={**config["recipe"], "cutmix": 1.0})


def test_the_loss_of_a_mixed_batch_is_the_cross_entropy_on_mixed_labels_smoothed_as_the_recipe_says():
    method = with_recipe("ce", label_smoothing=0.2)
    logits = torch.randn(8, 4)
    batch = mixed_batch()
    target = SHARE * F.one_hot(batch.labels, 4) + (1 - SHARE) * F.one_hot(batch.mixed.labels, 4)
    expected = F.cross_entropy(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(method.label_loss(logits, batch), expected)
    plain = Batch(batch.images, batch.labels, batch.index)
    assert torch.equal(method.label_loss(logits, plain), F.cross_entropy(logits, batch.labels, label_smoothing=0.2))


@pytest.mark.parametrize("name", MIXED)
def test_a_step_on_a_mixed_batch_never_waits_for_the_device(name, monkeypatch):
    method = with_recipe(name, mixup=0.2).to("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not support that device
    batch = batch_of(device="meta")
    batch = batch._replace(mixed=Mixed(batch.labels, torch.empty((), device="meta")))
    for stage in method.stages:
        method.stage = stage
        assert all(loss.is_meta for loss in method.batch_losses(batch).values())


@pytest.mark.parametrize("name", [name for name in MIXED if issubclass(CLASSES[name], Method)])
def test_the_teacher_sees_the_images_that_the_student_sees(name):
    method, seen = with_recipe(name, mixup=0.2), {}
    for group, network in (("student", method.student), ("teacher", method.teacher.network)):
        network.register_forward_pre_hook(lambda _, args, group=group: seen.setdefault(group, []).append(args[0]))
    batch = mixed_batch()
    method.batch_losses(batch)
    assert len(seen["student"]) == len(seen["teacher"]) == 1
    assert seen["student"][0] is seen["teacher"][0] is batch.images

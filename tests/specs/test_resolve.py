"""A run is resolved once: what it is, what it needs, and how often anything is checked."""

from collections import Counter

import pytest

from kdbench import loggers
from kdbench.data import imbalance, noise, sources
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from tests.helpers.tiny import LIGHT, TINY


def every_run(spec):
    """The run and all that it depends on."""
    yield spec
    for needed in spec.dependencies.values():
        yield from every_run(needed)


@pytest.fixture
def checks(monkeypatch):
    """How often each check is called."""
    calls = Counter()

    def counted(name, original):
        def check(*args):
            calls[name] += 1
            return original(*args)

        return check

    for module in (sources, imbalance, noise, loggers):
        monkeypatch.setattr(module, "check", counted(module.__name__, module.check))
    return calls


@pytest.mark.parametrize("overrides", [["method=kd"], ["method=ce"], ["method=lwkd", *LIGHT, "plus=[kd]"]], ids=str)
def test_everything_is_checked_once_a_run(overrides, checks, tmp_path):
    spec = spec_of([*TINY, "recipe.epochs=1", f"outputs={tmp_path}", *overrides])
    runs = len(list(every_run(spec)))
    expected = {f"kdbench.{module}": runs for module in ("data.sources", "data.imbalance", "data.noise", "loggers")}
    assert checks == expected
    record = conduct(spec)
    assert record.finished["id"] == spec.id
    assert checks == expected  # training checks nothing again


def test_a_teacher_is_a_dependency_with_an_identity_of_its_own():
    spec = spec_of([*TINY, "seed=3"])
    teacher = spec.dependencies["teacher"]
    assert (spec.role, teacher.role) == ("distill", "teacher")
    assert (spec.name, teacher.name) == ("kd-resnet14-resnet8-fake-s3", "ce-resnet14-fake-s0")
    assert teacher.id == spec_of([*TINY, "method=ce", "student=resnet14"]).id
    assert spec.identity.facts["dependencies"] == {"teacher": teacher.id}
    assert not teacher.dependencies


def test_what_a_method_declares_is_a_dependency_beside_the_teacher():
    spec = spec_of([*TINY, "method=lwkd", "plus=[kd]", *LIGHT])
    assert list(spec.dependencies) == ["teacher", "lightweight_teacher"]
    assert spec.dependencies["lightweight_teacher"].name == "ce-lenet5-synmnist-s0"
    other = spec_of([*TINY, "method=lwkd", "plus=[kd]", *LIGHT, "method.synthetic.map_seed=1"])
    assert other.id != spec.id


def test_a_method_without_a_teacher_depends_on_nothing():
    spec = spec_of([*TINY, "method=dml"])
    assert (dict(spec.dependencies), spec.role) == ({}, "baseline")


def test_a_resolved_run_cannot_be_changed():
    spec = spec_of(TINY)
    with pytest.raises(TypeError, match="read-only"):
        spec.config["recipe"]["epochs"] = 9
    with pytest.raises(TypeError, match="read-only"):
        spec.config |= {"seed": 1}
    with pytest.raises(AttributeError):
        spec.role = "teacher"
    with pytest.raises(TypeError):
        spec.dependencies["teacher"] = spec


def test_sizes_are_those_of_the_data():
    sizes = spec_of(TINY).sizes
    assert (sizes.num_classes, sizes.in_chans, sizes.image_size) == (4, 1, 8)
    assert (sizes.mean, sizes.std) == ((0.5,), (0.33,))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["recipe.drops=[0.5,1.5]"], ["recipe.drops=[0.5, 1.5]", "(0, 1)"]),
        (["recipe.warmup_epochs=3"], ["recipe.warmup_epochs=3", "< recipe.epochs=3"]),
        (["teacher.recipe.warmup_epochs=3"], ["teacher.recipe.warmup_epochs=3"]),
        (["plus=[kd]"], ["plus=[kd]", "the method already"]),
        (["teacher.checkpoint=absent.safetensors"], ["teacher.checkpoint=absent.safetensors cannot be read"]),
        (["method=lwkd", "dataset.num_classes=1001", "dataset.num_train=1100"], ["method=lwkd", "2 to 1000", "1001"]),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused_without_torch(overrides, parts):
    with pytest.raises(UserError) as caught:
        spec_of([*TINY, *overrides])
    assert all(part in str(caught.value) for part in parts)

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


def test_the_arguments_of_a_teacher_are_those_of_its_run():
    spec = spec_of([*TINY, "teacher.kwargs={width:8}"])
    teacher = spec.dependencies["teacher"]
    assert teacher.config["student"]["kwargs"] == {"width": 8}
    assert teacher.id == spec_of([*TINY, "method=ce", "student=resnet14", "student.kwargs.width=8"]).id
    assert len({spec.id, spec_of(TINY).id, spec_of([*TINY, "student.kwargs.width=8"]).id}) == 3


def test_weights_to_start_from_count_by_their_content(tmp_path):
    files = [tmp_path / name for name in ("first", "same", "other")]
    for file, content in zip(files, ("a", "a", "b"), strict=True):
        file.write_text(content)
    specs = [spec_of([*TINY, f"student.init={file}"]) for file in files]
    assert specs[0].id == specs[1].id
    assert len({spec.id for spec in specs} | {spec_of(TINY).id}) == 3
    assert str(tmp_path) not in str(specs[0].identity.facts)
    teachers = [spec_of([*TINY, f"teacher.init={file}"]).dependencies["teacher"] for file in files]
    assert teachers[0].id == spec_of([*TINY, "method=ce", "student=resnet14", f"student.init={files[1]}"]).id
    assert teachers[0].id != teachers[2].id
    with pytest.raises(UserError, match=r"teacher\.init=.* is not allowed: teacher\.checkpoint"):
        spec_of([*TINY, f"teacher.init={files[0]}", f"teacher.checkpoint={files[1]}"])


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
        (["student.kwargs={num_classes:3}"], ["student.kwargs.num_classes=3", "follows from the data"]),
        (["teacher.kwargs={in_chans:3}"], ["teacher.kwargs.in_chans=3", "follows from the data"]),
        (["student.kwargs={pretrained:true}"], ["student.kwargs.pretrained=True"]),
        (["student.kwargs={width:null}"], ["student.kwargs.width=None", "ignores"]),
        (["student.init=absent.pt"], ["student.init=absent.pt cannot be read"]),
        (["teacher.init=absent.pt"], ["teacher.init=absent.pt cannot be read"]),
        (["student.classifier=fc"], ["student.classifier=fc", "student.source=custom"]),
        (["teacher.stages=[layer1]"], ["teacher.stages=['layer1']", "teacher.source=custom"]),
        (["student=custom", "student.name=resnet"], ["student.name=resnet", "package.module.function"]),
        (["student=custom", "student.name=a.b", "student.stages=[c]"], ["student.stages", "student.classifier"]),
        (
            ["student=custom", "student.name=a.b", "student.classifier=d", "student.stages=[c,c]"],
            ["student.stages=['c', 'c']", "each once"],
        ),
        (["teacher.checkpoint=absent.safetensors"], ["teacher.checkpoint=absent.safetensors cannot be read"]),
        (["method=lwkd", "dataset.num_classes=1001", "dataset.num_train=1100"], ["method=lwkd", "2 to 1000", "1001"]),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused_without_torch(overrides, parts):
    with pytest.raises(UserError) as caught:
        spec_of([*TINY, *overrides])
    assert all(part in str(caught.value) for part in parts)

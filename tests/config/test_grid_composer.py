import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hydra import compose
from omegaconf import OmegaConf

from kdbench.config.check import _resolved
from kdbench.config.compose import CONFIG_ERRORS, hydra_at_conf, without_hydra
from kdbench.config.explain import explain
from kdbench.config.grid_composer import GridComposer

LINES = [
    [],
    ["seed=3"],
    ["method=at", "method.weight=10", "seed=1"],
    ["recipe=quick", "recipe.epochs=7", "student=resnet20"],
    ["teacher.recipe.epochs=5", "recipe.epochs=3"],
    ["teacher=self", "student=resnet14", "seed=2"],
    ["teacher=timm", "teacher.name=resnet18"],
    ["student=timm", "student.name=resnet18", "teacher=resnet56"],
    ["student=timm", "student.name=resnet18", "student.kwargs.drop_rate=0.1", "teacher=self"],
    ["student=resnet14", "student.kwargs={width:8}"],
    ["plus=[at]", "method=kd"],
    ["method=at", "plus=[kd,sp]", "plus.kd.temperature=2"],
    ["noise=symmetric", "noise.rate=0.2", "imbalance=longtail"],
    ["noise=none", "imbalance=step"],
    ["debug=smoke", "seed=5"],
    ["debug=smoke", "recipe=quick"],
    ["debug=smoke", "recipe=quick", "recipe.epochs=9", "logger=csv"],
    ["debug=smoke", "trainer=cpu"],
    ["experiment=demo", "student=resnet14"],
    ["experiment=demo", "dataset=mnist5k", "teacher=resnet8", "teacher.recipe.epochs=2"],
    ["experiment=demo", "debug=smoke", "method=dml"],
    ["dataset.root=null", "teacher.checkpoint=null"],
    ["method=fitnet", "method.stages=[1,2]", "method.stages=null"],
    ["recipe.drops=[0.5,0.75]", "recipe.warmup_epochs=2"],
    ["+method.extra=3", "seed=1"],
    ["++seed=4"],
    ["~force"],
    ["~method.alpha", "method=kd"],
    ["recipe.epochs=${recipe.warmup_epochs}"],
    ["method=ce", "teacher=resnet8x4", "student=resnet8x4"],
    ["logger=csv", "trainer=cpu", "trainer.progress=none"],
    ["~debug"],
    ["seed={a:1}"],
    ["method=[kd]"],
    ["dataset=synmnist", "dataset.num_classes=20", "dataset.image_size=32"],
]


@pytest.fixture(scope="module")
def both():
    with hydra_at_conf() as loader:
        yield (
            GridComposer(loader, "train", []),
            lambda words: without_hydra(compose("train", overrides=words, return_hydra_config=True)),
        )


def seen(composed):
    cfg, choices = composed
    own = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    return OmegaConf.to_container(cfg, resolve=False), own, OmegaConf.is_struct(cfg)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_job_is_composed_as_by_hydra(both, words):
    composer, hydra = both
    assert seen(composer.compose(words)) == seen(hydra(words))


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_composed_job_is_a_copy_of_its_own(both, words):
    composer, _ = both
    before = seen(composer.compose(words))
    cfg, _ = composer.compose(words)
    OmegaConf.set_struct(cfg, False)
    cfg.seed, cfg.method, cfg.recipe.lr = 99, None, 99.0
    assert seen(composer.compose(words)) == before


WRONG = [
    ["methd=kd"],
    ["method=kdd"],
    ["method.temprature=2"],
    ["method=at", "method.temperature=2"],
    ["student=resnet9"],
    ["+seed=1"],
    ["plus=[ce]"],
    ["method@other=kd"],
    ["~method.nothing"],
    ["experiment=nothing"],
    ["method=null"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_hydra_refuses_is_refused_as_hydra_does(both, words):
    composer, hydra = both
    with pytest.raises((*CONFIG_ERRORS, ValueError)) as expected:
        hydra(words)
    with pytest.raises(expected.type) as raised:
        composer.compose(words)
    assert explain(raised.value, words) == explain(expected.value, words)


def test_references_are_followed_as_omegaconf_does(both):
    composer, _ = both
    for words in LINES:
        cfg, _ = composer.compose(words)
        if not OmegaConf.missing_keys(cfg):
            assert _resolved(cfg) == OmegaConf.to_container(cfg, resolve=True)


def test_a_reference_to_a_reference_and_one_within_text_are_followed(both):
    _, hydra = both
    references = "${teacher.recipe.momentum}", "a-${seed}-${recipe.epochs}", "${recipe.epochs}", "${recipe.drops}"
    for word in (f"outputs={reference}" for reference in references):
        cfg, _ = hydra([word])
        assert _resolved(cfg) == OmegaConf.to_container(cfg, resolve=True)


def test_presets_of_a_users_own_folder_keep_what_they_write(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nrecipe:\n  lr: 0.5\n")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "mine.yaml").write_text("defaults: [symmetric, _self_]\nrate: 0.7\n")
    fixed = [f"hydra.searchpath=[file://{tmp_path}]"]
    with hydra_at_conf() as loader:
        composer = GridComposer(loader, "train", fixed)
        for words in (["experiment=mine", "recipe=quick"], ["noise=mine", "seed=1"], ["experiment=mine", "noise=mine"]):
            by_hydra = compose("train", overrides=[*fixed, *words], return_hydra_config=True)
            assert seen(composer.compose(words)) == seen(without_hydra(by_hydra))
        cfg, _ = composer.compose(["experiment=mine", "recipe=quick"])
        assert cfg.recipe.lr == 0.5


GRID = [
    [f"method={method}", f"noise={noise}", f"seed={seed}", "student=resnet14"]
    for method, noise, seed in itertools.product(["kd", "at", "dml", "ce"], ["none", "symmetric"], range(25))
]


def asked_of_hydra(monkeypatch, loader):
    """Lists every configuration that Hydra itself composes from here on."""
    asked = []
    load = loader.load_configuration
    monkeypatch.setattr(loader, "load_configuration", lambda *a, **k: asked.append(a) or load(*a, **k))
    return asked


def test_two_hundred_jobs_ask_hydra_three_times(monkeypatch):
    with hydra_at_conf() as loader:
        composer, asked = GridComposer(loader, "train", []), asked_of_hydra(monkeypatch, loader)
        for overrides in GRID:
            composer.compose(overrides)
    assert len(asked) == 3  # the base of all jobs, and the first two jobs, to compare


class PublicLoader:
    """Hydra's loader with its public parts, and with what a test adds."""

    def __init__(self, loader, **more):
        self.real, self.used = loader, 0
        vars(self).update(more)

    def load_configuration(self, *args, **kwargs):
        self.used += 1
        return self.real.load_configuration(*args, **kwargs)


def without_repository(monkeypatch, loader):
    return PublicLoader(loader)


def repository_takes_other_arguments(monkeypatch, loader):
    return PublicLoader(loader, _parse_overrides_and_create_caching_repo=lambda: None)


def repository_without_methods(monkeypatch, loader):
    return PublicLoader(loader, _parse_overrides_and_create_caching_repo=lambda *_: (None, object()))


def loading_takes_other_arguments(monkeypatch, loader):
    repository = SimpleNamespace(group_exists=lambda name: True, load_config=lambda: None)
    return PublicLoader(loader, _parse_overrides_and_create_caching_repo=lambda *_: (None, repository))


def _whole(loader):
    return PublicLoader(
        loader, _parse_overrides_and_create_caching_repo=loader._parse_overrides_and_create_caching_repo
    )


def no_defaults_elements(monkeypatch, loader):
    monkeypatch.setitem(sys.modules, "hydra.core.default_element", ModuleType("default_element"))
    return _whole(loader)


def no_way_to_apply_values(monkeypatch, loader):
    monkeypatch.setitem(sys.modules, "hydra._internal.config_loader_impl", ModuleType("config_loader_impl"))
    return _whole(loader)


def values_take_other_arguments(monkeypatch, loader):
    module = ModuleType("config_loader_impl")
    module.ConfigLoaderImpl = SimpleNamespace(_apply_overrides_to_config=lambda: None)
    monkeypatch.setitem(sys.modules, "hydra._internal.config_loader_impl", module)
    return _whole(loader)


def values_are_not_applied(monkeypatch, loader):
    monkeypatch.setattr("kdbench.config.grid_composer.apply_values", lambda overrides, cfg: None)
    return _whole(loader)


FEW = [*GRID[:2], GRID[60], ["experiment=demo", "plus=[at]", "recipe=quick"], ["~method.alpha", "method=kd"]]


@pytest.mark.parametrize(
    "part",
    [without_repository, repository_takes_other_arguments, repository_without_methods, loading_takes_other_arguments,
     no_defaults_elements, no_way_to_apply_values, values_take_other_arguments, values_are_not_applied],
    ids=lambda part: part.__name__,
)  # fmt: skip
def test_without_a_private_part_of_hydra_the_grid_is_the_same(both, monkeypatch, part):
    _, hydra = both
    expected = [seen(hydra(overrides)) for overrides in FEW]
    with hydra_at_conf() as real, monkeypatch.context() as patch:
        loader = part(patch, real)
        composer = GridComposer(loader, "train", [])
        assert [seen(composer.compose(overrides)) for overrides in FEW] == expected
    assert loader.used >= len(FEW)  # Hydra itself composed every job

import itertools

import pytest
from hydra import compose
from omegaconf import OmegaConf

from kdbench import config
from kdbench.composer import Composer

LINES = [
    [],
    ["seed=3"],
    ["method=at", "method.weight=10", "seed=1"],
    ["recipe=quick", "recipe.epochs=7", "student=resnet20"],
    ["teacher.recipe.epochs=5", "recipe.epochs=3"],
    ["teacher=self", "student=resnet14", "seed=2"],
    ["teacher=timm", "teacher.name=resnet18"],
    ["student=timm", "student.name=resnet18", "teacher=resnet56"],
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
            Composer(loader, "train", []),
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
        composer = Composer(loader, "train", fixed)
        for words in (["experiment=mine", "recipe=quick"], ["noise=mine", "seed=1"], ["experiment=mine", "noise=mine"]):
            by_hydra = compose("train", overrides=[*fixed, *words], return_hydra_config=True)
            assert seen(composer.compose(words)) == seen(without_hydra(by_hydra))
        cfg, _ = composer.compose(["experiment=mine", "recipe=quick"])
        assert cfg.recipe.lr == 0.5


def test_two_hundred_jobs_ask_hydra_once(both, monkeypatch):
    composer, _ = both
    fresh = Composer(composer._loader, "train", [])
    asked = []
    load = composer._loader.load_configuration
    monkeypatch.setattr(composer._loader, "load_configuration", lambda *a, **k: asked.append(a) or load(*a, **k))
    for method, noise, seed in itertools.product(["kd", "at", "dml", "ce"], ["none", "symmetric"], range(25)):
        fresh.compose([f"method={method}", f"noise={noise}", f"seed={seed}", "student=resnet14"])
    assert len(asked) == 1

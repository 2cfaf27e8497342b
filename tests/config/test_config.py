"""The rules in `conf/`, and what a person reads who breaks one."""

import re
import subprocess
import sys

import pytest
import yaml

from kdbench.config.compose import compose
from kdbench.config.groups import CONF, GROUPS, header, options
from kdbench.config.overrides import from_overrides
from kdbench.config.rules import Rule, leaves, rules_of
from kdbench.errors import UserError

FILES = sorted(str(path.relative_to(CONF))[:-5] for path in CONF.rglob("*/*.yaml"))
PRESETS = [name for name in options("experiment") if "/" in name]


def test_there_are_options_in_every_group():
    for group in GROUPS:
        if group not in ("plus", "student", "teacher"):
            assert options(group), group


@pytest.mark.parametrize("option", FILES)
def test_every_leaf_has_a_rule_that_its_default_keeps(option):
    text = (CONF / f"{option}.yaml").read_text()
    if "@package _global_" in text:
        return  # presets set keys that belong to others
    content = yaml.safe_load(text)
    content.pop("defaults", None)
    rules = rules_of(option)
    assert "The comment behind each key is its rule" in text
    for key, value in leaves(content):
        key = "lr" if key.startswith("lr.") else key  # a rate for each network
        assert key in rules, f"{option}: {key} has no rule"
        if value != "???" and not str(value).startswith("${"):
            assert rules[key].refusal(value) is None, f"{option}: {key}={value}"


@pytest.mark.parametrize("option", FILES)
def test_every_option_describes_itself(option):
    assert len(header(option)["what"]) > 5


@pytest.mark.parametrize("option", [f for f in FILES if "/_" not in f])
def test_every_option_composes(option):
    group, _, name = option.partition("/")
    words = [f"{group}={name}"] + (["dataset.root=x"] if name == "imagefolder" else [])
    assert compose(words)[1][group] == name
    assert from_overrides(words)["seed"] == 0


@pytest.mark.parametrize("recipe", options("recipe"))
def test_a_shortened_recipe_keeps_its_drops_at_their_fractions(recipe):
    cfg = from_overrides([f"recipe={recipe}", "recipe.epochs=30"])
    assert cfg["recipe"]["epochs"] == 30
    assert cfg["recipe"]["drops"] == from_overrides([f"recipe={recipe}"])["recipe"]["drops"]


@pytest.mark.parametrize(
    ("recipe", "epochs", "drops", "factor", "lr", "batch", "decay", "warmup"),
    [
        ("crd240", 240, [150, 180, 210], 0.1, 0.05, 64, 5e-4, 0),
        ("nav200", 200, [60, 120, 160], 0.2, 0.1, 128, 5e-4, 0),
        ("ldam200", 200, [160, 180], 0.01, 0.1, 128, 2e-4, 5),
        ("one300", 300, [150, 225], 0.1, 0.1, 128, 1e-4, 0),
        ("bss80", 80, [39, 59], 0.1, 0.1, 256, 1e-4, 0),
        ("tfkd200", 200, [60, 120, 160], 0.2, 0.1, 128, 5e-4, 1),
        ("imagenet100", 100, [30, 60, 90], 0.1, 0.2, 512, 1e-4, 0),
    ],
)
def test_a_published_recipe_is_the_published_one(recipe, epochs, drops, factor, lr, batch, decay, warmup):
    cfg = from_overrides([f"recipe={recipe}"])["recipe"]
    assert (cfg["optimizer"], cfg["momentum"], cfg["nesterov"], cfg["schedule"]) == ("sgd", 0.9, False, "step")
    assert (cfg["epochs"], cfg["factor"], cfg["lr"], cfg["batch_size"]) == (epochs, factor, lr, batch)
    assert (cfg["weight_decay"], cfg["warmup_epochs"]) == (decay, warmup)
    assert [drop * epochs for drop in cfg["drops"]] == pytest.approx(drops)


def test_the_recipe_of_the_study_mirrors_borders_and_leaves_images_as_they_are_unless_told_otherwise():
    cfg = from_overrides(["recipe=nav200", "dataset=cifar10"])
    assert (cfg["dataset"]["padding_mode"], cfg["dataset"]["normalize"]) == ("reflect", False)
    assert from_overrides(["recipe=nav200", "dataset.normalize=true"])["dataset"]["normalize"] is True


@pytest.mark.parametrize("preset", PRESETS)
def test_the_header_of_a_preset_says_how_to_run_it_and_its_smoke_form_composes(preset):
    head = header(f"experiment/{preset}")
    assert head["hardware"]
    assert head["claims"]
    assert head["command"][0].split()[:3] == ["kdbench-train", "-m", f"experiment={preset}"]
    assert head["smoke"].split()[:2] == ["kdbench-train", f"experiment={preset}"]
    cfg = from_overrides(head["smoke"].split()[1:])
    assert (cfg["recipe"]["epochs"], cfg["trainer"]["max_batches"]) == (1, 2)


def test_networks_are_options_of_both_groups():
    cfg = from_overrides(["student=wrn_16_2", "teacher=timm", "teacher.name=resnet18"])
    plain = {"kwargs": {}, "stages": None, "classifier": None, "image_size": None, "init": None}
    assert cfg["student"] == {"source": "cifar", "name": "wrn_16_2", **plain}
    assert (cfg["teacher"]["source"], cfg["teacher"]["name"]) == ("timm", "resnet18")


@pytest.mark.parametrize("group", ["student", "teacher"])
@pytest.mark.parametrize("network", ["timm", "custom", "resnet8"])
def test_arguments_of_a_network_are_given_together_or_one_by_one(group, network):
    chosen = [f"{group}={network}", *([] if network == "resnet8" else [f"{group}.name=a.b"])]
    together = from_overrides([*chosen, group + ".kwargs={patch_size:4,depths:[1,2],mlp:{ratio:2.5}}"])
    assert together[group]["kwargs"] == {"patch_size": 4, "depths": [1, 2], "mlp": {"ratio": 2.5}}
    each = [f"{group}.kwargs.patch_size=4", f"{group}.kwargs.depths=[1,2]", f"{group}.kwargs.mlp.ratio=2.5"]
    assert from_overrides([*chosen, *each]) == together
    with pytest.raises(UserError, match=f"{group}.argument"):
        from_overrides([*chosen, f"{group}.argument=4"])


def test_a_teacher_of_the_students_kind_has_its_arguments():
    cfg = from_overrides(["teacher=self", "student=timm", "student.name=x", "student.kwargs.patch_size=4"])
    assert cfg["teacher"]["kwargs"] == cfg["student"]["kwargs"] == {"patch_size": 4}


def test_plus_takes_its_weights_from_the_methods_own_file():
    cfg = from_overrides(["method=ce", "plus=[kd]", "plus.kd.alpha=0.5"])
    assert cfg["plus"]["kd"]["alpha"] == 0.5
    assert cfg["plus"]["kd"]["temperature"] == from_overrides([])["method"]["temperature"]


def test_the_teachers_recipe_follows_the_students_key_by_key():
    cfg = from_overrides(["recipe.epochs=7", "teacher.recipe.lr=0.2"])
    assert cfg["teacher"]["recipe"] == {**cfg["recipe"], "lr": 0.2}


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("int > 0", [1, 5], [0, -1, 1.5, "1", True, None]),
        ("int >= 0 or null", [0, None], [-1, False]),
        ("float in [0, 1)", [0, 0.5], [1, 1.0, -0.1, float("nan"), "0.5", True]),
        ("float in (0, 1]", [1, 0.1], [0, 1.1]),
        ("float > 0", [1e-9, 3], [0.0, float("inf")]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("a|b or null", ["a", None], ["c", 1]),
        ("1|3", [1, 3], [2]),
        ("str", ["", "x"], [1, None]),
        ("list", [[]], ["x", {}]),
    ],
)
def test_rules(text, good, bad):
    rule = Rule.parse(text)
    assert [rule.refusal(value) for value in good] == [None] * len(good)
    assert all(rule.refusal(value) for value in bad)


@pytest.mark.parametrize("text", ["float > ", "number", "int in 0..3", "a"])
def test_what_is_not_a_rule(text):
    with pytest.raises(ValueError, match="not a rule"):
        Rule.parse(text)


# override -> what the line must name
BAD = {
    "method=kdd": ["method=kdd", "nearest: kd"],
    "student=resnet9": ["student=resnet9", "nearest: resnet8"],
    "teacher=resnet21": ["teacher=resnet21", "resnet20"],
    "dataset=cifar": ["dataset=cifar", "cifar10"],
    "recipe=crd": ["recipe=crd", "crd240"],
    "noise=symetric": ["noise=symetric", "symmetric"],
    "imbalance=some": ["imbalance=some", "none"],
    "trainer=tpu": ["trainer=tpu", "cpu"],
    "logger=wanb": ["logger=wanb", "wandb"],
    "experiment=dmo": ["experiment=dmo", "demo"],
    "debug=smok": ["debug=smok", "smoke"],
    "plus=[kx]": ["plus=kx", "kd"],
    "plus=[kd,kd]": ["kd", "more than once"],
    "recipe.epoch=3": ["recipe.epoch", "nearest: recipe.epochs"],
    "methd=kd": ["methd", "nearest: method"],
    "method.temprature=3": ["method.temprature", "method.temperature"],
    "sed=1": ["sed", "seed"],
    "+recipe.wd=0.1": ["unknown key recipe.wd"],
    "+foo=1": ["unknown key foo"],
    "recipe.epochs=abc": ["recipe.epochs=abc", "int > 0"],
    "recipe.epochs=0": ["recipe.epochs=0", "int > 0"],
    "recipe.epochs=2.5": ["recipe.epochs=2.5", "int > 0"],
    "recipe.lr=-0.1": ["recipe.lr=-0.1", "float > 0"],
    "recipe.lr=fast": ["recipe.lr=fast", "float > 0"],
    "recipe.batch_size=0": ["recipe.batch_size=0", "int > 0"],
    "recipe.optimizer=sdg": ["recipe.optimizer=sdg", "nearest: sgd"],
    "recipe.momentum=1": ["recipe.momentum=1", "float in [0, 1)"],
    "recipe.nesterov=maybe": ["recipe.nesterov=maybe", "bool"],
    "seed=1.5": ["seed=1.5", "int >= 0"],
    "seed=null": ["seed=null", "int >= 0"],
    "noise.rate=1.4": ["noise.rate=1.4", "[0, 1]"],
    "noise.clean_validation=1": ["noise.clean_validation=1", "bool"],
    "imbalance=longtale": ["imbalance=longtale", "longtail"],
    "noise.rate=-0.1": ["noise.rate=-0.1", "[0, 1]"],
    "method.temperature=0": ["method.temperature=0", "float > 0"],
    "method.temperature=-4": ["method.temperature=-4", "float > 0"],
    "method.alpha=1.5": ["method.alpha=1.5", "float in [0, 1]"],
    "teacher.min_accuracy=90": ["teacher.min_accuracy=90", "[0, 1]"],
    "dataset.val_fraction=1": ["dataset.val_fraction=1", "[0, 1)"],
    "dataset.padding_mode=mirror": ["dataset.padding_mode=mirror", "reflect"],
    "trainer.precision=fp16": ["trainer.precision=fp16", "16-mixed"],
    "logger.mode=on": ["logger.mode", "online"],
    "student=timm": ["student.name", "must be given"],
    "recipe.epochs": ["recipe.epochs"],
    "a b=3": ["a b=3"],
}


@pytest.mark.parametrize("override", BAD)
def test_a_bad_override_is_one_line_that_names_it(override):
    with pytest.raises(UserError) as caught:
        from_overrides([override])
    message = str(caught.value)
    assert "\n" not in message
    for word in BAD[override]:
        assert word in message


@pytest.mark.parametrize("override", ["method=kdd", "recipe.epoch=3", "method.temperature=0", "plus=[kx]"])
def test_the_command_exits_with_2_and_that_line_alone(override, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.train", override],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .+\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_checking_needs_no_torch():
    code = "import sys, kdbench.train; from kdbench.specs.resolve import spec_of; spec_of([]); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "student", "teacher"),
    [
        (["student=mobilenetv2", "teacher=vgg13"], 0.01, 0.05),
        (["student=resnet8", "teacher=shufflenetv1"], 0.05, 0.01),
        (["student=timm", "student.name=mobilenetv2_050", "teacher=vgg13"], 0.05, 0.05),
        (["student=mobilenetv2", "recipe.lr=0.03"], 0.03, 0.03),
        (["student=mobilenetv2", "recipe.lr.mobilenetv2=0.02"], 0.02, 0.05),
        (["student=mobilenetv2", "teacher.recipe.lr=0.3"], 0.01, 0.3),
        (["method=tfkd_self", "student=shufflenetv2"], 0.01, 0.01),
        (["student=mobilenetv2", "recipe=quick"], 0.1, 0.1),
    ],
)
def test_learning_rate_of_crd240_depends_on_the_network_unless_it_is_given(overrides, student, teacher):
    cfg = from_overrides(overrides)
    assert (cfg["recipe"]["lr"], cfg["teacher"]["recipe"]["lr"]) == (student, teacher)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.lr.default=-1", r"recipe.lr.default=-1 is not allowed: it must be float > 0"),
        ("+recipe.lr.mobilenet=0.1", r"recipe.lr.mobilenet=0.1 is not allowed: no such network; nearest: mobilenetv2"),
        ("teacher.recipe.lr={resnet8:0.1}", r"teacher.recipe.lr={'resnet8': 0.1} is not allowed: it lacks default"),
    ],
)
def test_learning_rates_by_network_are_checked(override, message):
    with pytest.raises(UserError, match=message):
        from_overrides([override])

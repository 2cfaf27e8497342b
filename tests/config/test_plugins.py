"""Options and methods from outside of kdbench: named, listed, checked and refused like its own."""

import json
import os
import subprocess
import sys

import pytest

from kdbench.commands.ls import rows
from kdbench.config import plugins
from kdbench.config.groups import addable_methods, header, is_outside, options
from kdbench.config.overrides import from_overrides
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.tiny import TINY, launch

METHOD = '''"""Mine."""
from kdbench.methods.kd import kd_loss
from kdbench.methods.method import Method


class Mine(Method):
    """KD with another weight."""

    def __init__(self, beta, extra):
        super().__init__()
        self.beta = beta

    def losses(self, student, teacher, batch):
        return {"mine": self.beta * kd_loss(student.logits, teacher.logits, 4.0)}
'''
YAML = """# Mine: KD with another weight
# paper: Nobody
# year: 2026
name: mine
_target_: my_methods.Mine
needs: [teacher]
beta: 1.0  # float >= 0: its weight
extra: anything
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A folder with a method; `write(file, text)` adds to it."""
    folder = tmp_path / "plugin"

    def write(file, text):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("my_methods.py", METHOD)
    write("conf/method/mine.yaml", YAML)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    write.folder = folder
    return write


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        spec_of([*TINY, *overrides])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_method_from_outside_is_an_option_like_others(plugin):
    assert "mine" in options("method")
    assert "mine" in addable_methods()
    assert is_outside("method/mine")
    assert not is_outside("method/kd")
    assert header("method/mine")["paper"] == "Nobody"
    spec = spec_of([*TINY, "method=mine", "method.beta=2"])
    assert (spec.name, list(spec.dependencies)) == ("mine-resnet14-resnet8-fake-s0", ["teacher"])
    assert from_overrides(["method=at", "plus=[mine]", "plus.mine.beta=3"])["plus"]["mine"]["beta"] == 3


def test_its_rules_and_what_it_fixes_are_checked(plugin):
    assert "method.beta=-3 is not allowed: it must be float >= 0" in refused("method=mine", "method.beta=-3")
    assert "plus.mine.beta=-3 is not allowed" in refused("plus=[mine]", "plus.mine.beta=-3")
    assert "unknown key method.betta; nearest: method.beta" in refused("method=mine", "method.betta=3")
    assert "unknown key method.gamma" in refused("method=mine", "+method.gamma=3")
    assert "method=mime is not known; nearest: mine" in refused("method=mime")
    assert spec_of([*TINY, "method=mine", "method.extra=5"]).config["method"]["extra"] == 5  # without a rule


def test_a_comment_that_is_not_a_rule_is_refused_with_its_line(plugin):
    plugin("conf/method/odd.yaml", YAML.replace("mine", "odd").replace("float >= 0", "float >="))
    assert "odd.yaml:7: the comment of beta is not a rule: 'float >='" in refused("method=odd")


def test_its_source_is_part_of_the_identity(plugin):
    before = spec_of([*TINY, "method=mine"])
    plugin("my_methods.py", METHOD + "# nothing\n")
    assert spec_of([*TINY, "method=mine"]).id == before.id
    plugin("my_methods.py", METHOD.replace("4.0", "5.0"))
    changed = spec_of([*TINY, "method=mine"])
    assert changed.id != before.id
    assert changed.dependencies["teacher"].id == before.dependencies["teacher"].id
    assert spec_of([*TINY, "plus=[mine]"]).id != spec_of([*TINY, "plus=[at]"]).id


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("conf/method/mine.yaml", YAML.replace("name: mine", "name: kd"), ["mine.yaml", "name is kd", "must be mine"]),
        ("conf/method/mine.yaml", YAML.replace("needs: [teacher]\n", ""), ["mine.yaml lacks needs"]),
        ("conf/method/mine.yaml", YAML.replace("my_methods.Mine", "absent.Mine"), ["absent.Mine", "no module absent"]),
        ("conf/method/mine.yaml", YAML.replace("methods.Mine", "methods.Mime"), ["does not define Mime", "Mine"]),
        ("my_methods.py", "class Mine(:\n", ["my_methods.py:1", "not valid Python"]),
        ("my_methods.py", METHOD.replace("import kd_loss", "import kd_los"), ["my_methods.py:2", "kd_los"]),
        ("my_methods.py", "import absent_package\n" + METHOD, ["my_methods.py:1", "no module absent_package"]),
        ("conf/method/kd.yaml", YAML, ["kd.yaml has the name of another option"]),
        ("conf/method/mine.yaml", "name: [", ["mine.yaml", "not valid YAML"]),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith((".py", ".yaml")) else "",
)
def test_a_broken_method_is_refused_in_a_line(plugin, file, text, parts):
    plugin(file, text)
    message = refused("method=mine")
    for part in parts:
        assert part in message


def test_a_recipe_may_only_have_keys_that_are_read_and_must_have_all_of_them(plugin):
    plugin("conf/recipe/short.yaml", "defaults: [quick, _self_]\nepochs: 2\n")
    assert spec_of([*TINY, "recipe=short"]).config["recipe"]["lr"] == 0.1
    assert "recipe.lr=-1 is not allowed" in refused("recipe=short", "recipe.lr=-1")
    plugin("conf/recipe/short.yaml", "defaults: [quick, _self_]\ngradient_clip_val: 1.0\n")
    message = refused("recipe=short")
    assert "unknown key recipe.gradient_clip_val: nothing reads it" in message
    plugin("conf/recipe/short.yaml", "epochs: 2\n")
    with pytest.raises(UserError, match=r"short\.yaml lacks \w+: name one of recipe's options in its defaults"):
        spec_of(["recipe=short"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/nowhere/at/all", ["/nowhere/at/all is neither a folder nor a package"]),
        ("json", ["the package json has no folder conf/"]),
        ("absent_package", ["absent_package is neither a folder nor a package"]),
    ],
)
def test_a_plugin_that_is_not_there_is_refused_in_a_line(monkeypatch, name, parts):
    monkeypatch.setenv(plugins.VARIABLE, name)
    with pytest.raises(UserError) as caught:
        options("method")
    for part in parts:
        assert part in str(caught.value)


def test_the_commands_know_it_however_it_is_named(plugin, tmp_path, monkeypatch):
    monkeypatch.delenv(plugins.VARIABLE)
    words = [*TINY, "recipe.epochs=1", "method=mine", f"outputs={tmp_path}/outputs"]
    run = launch(
        ["--config-dir", f"{plugin.folder}/conf", *words], env={**os.environ, "PYTHONPATH": str(plugin.folder)}
    )
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    (result,) = tmp_path.glob("outputs/runs/mine-*/result.json")
    assert json.loads(result.read_text())["facts"]["code"]["method"]
    code = "import sys; from kdbench import cli; sys.exit(cli.main(sys.argv[1:]))"
    for command in (["ls", "methods"], ["plan", "-m", *words]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--config-dir", str(plugin.folder)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "mine" in done.stdout
    assert "1 done" in done.stdout


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (METHOD + "\nraise OSError('no\\nlicence')\n", ["my_methods.py:16", "OSError: no licence"]),
        (METHOD.replace("class Mine(Method)", "class Mine(object)"), ["my_methods.Mine does not derive from Method"]),
        (METHOD.replace("beta, extra", "beta, gamma"), ["mine.yaml does not give what my_methods.Mine takes", "gamma"]),
    ],
    ids=["raises", "no method", "other arguments"],
)
def test_a_class_that_cannot_be_made_is_refused_in_a_line(plugin, tmp_path, text, parts):
    plugin("my_methods.py", text)
    run = launch([*TINY, "method=mine", f"outputs={tmp_path}/outputs"])
    output, _ = run.communicate(timeout=100)
    assert run.returncode == 2, output
    assert output.count("\n") == 1
    for part in parts:
        assert part in output
    assert not (tmp_path / "outputs").exists()


NETWORK = """from torch import nn


def small(num_classes, in_chans):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


def test_the_source_of_a_network_from_outside_is_part_of_the_identity(plugin):
    overrides = [*TINY, "method=ce", "student=custom", "student.name=my_networks.small", "student.classifier='3'"]
    plugin("my_networks.py", NETWORK)
    before = spec_of(overrides)
    plugin("my_networks.py", NETWORK.replace("def small", "# a comment\ndef small"))
    assert spec_of(overrides).id == before.id
    plugin("my_networks.py", NETWORK.replace("8, 3)", "8, 5)"))
    assert spec_of(overrides).id != before.id


def test_the_help_text_names_the_options_of_plugins(plugin, tmp_path):
    plugin("conf/recipe/ten_epochs.yaml", "# Ten epochs\ndefaults: [quick, _self_]\nepochs: 10\n")
    assert "\n  From plugins: method=mine, recipe=ten_epochs\n\nThree examples:" in launch(["--help"]).communicate()[0]


def test_a_network_of_a_plugin_has_rules_and_fixed_keys_and_is_listed(plugin):
    plugin("my_networks.py", NETWORK.replace("in_chans):", "in_chans, width=8):"))
    plugin(
        "conf/student/mini.yaml",
        "# Mini\ndefaults: [_base, _self_]\nsource: custom  # fixed: outside\nname: my_networks.small  # fixed: it\n"
        "kwargs:\n  width: 8  # int >= 1: channels\nclassifier: '3'  # fixed: last\n",
    )
    assert spec_of([*TINY, "student=mini", "student.kwargs.width=4"]).config["student"]["kwargs"] == {"width": 4}
    assert "student.kwargs.width=0 is not allowed: it must be int >= 1" in refused(
        "student=mini", "student.kwargs.width=0"
    )
    assert "student=mini fixes it at my_networks.small" in refused("student=mini", "student.name=my_networks.other")
    assert "student.init=3 is not allowed" in refused("student=mini", "student.init=3")  # a rule of _base
    assert ("mini", "Mini", "", "", "") in rows("student")
    assert "mini" not in [row[0] for row in rows("teacher")]

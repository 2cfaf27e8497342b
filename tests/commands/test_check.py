"""`kdbench check`: a line for each rule, why one is broken and where, and what is refused."""

import os
import subprocess
import sys

import pytest

from kdbench import cli
from kdbench.config import plugins
from kdbench.conformance.suite import RULES

METHOD = '''"""Mine."""
import torch
from kdbench.methods.kd import kd_loss
from kdbench.methods.method import Method


class Mine(Method):
    """KD with a weight."""

    mixed_labels = True
    reads = ("logits",)

    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def losses(self, student, teacher, batch):
        return {"soft": self.beta * kd_loss(student.logits, teacher.logits, 4.0)}
'''
YAML = """# Mine: KD with a weight
name: mine  # fixed: the name of the method
_target_: {module}.Mine  # fixed: the class
needs: [teacher]  # fixed: what the runner must provide
beta: 1.0  # float >= 0: its weight
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys, request):
    """`check(text, *overrides)` of a plugin of this source: exit code, what is said by rule, the lines after that."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    module = f"checked_{abs(hash(request.node.name))}"
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/mine.yaml").write_text(YAML.format(module=module))

    def checked(text, *overrides):
        (tmp_path / f"{module}.py").write_text(text)
        code = cli.main(["check", "method=mine", *overrides, "--config-dir", str(tmp_path)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        lines = printed.out.splitlines()
        rows = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in lines[: len(RULES)]}
        return code, rows, lines[len(RULES) :] or printed.err.splitlines()

    checked.file = tmp_path / f"{module}.py"
    yield checked
    sys.modules.pop(module, None)


def test_a_sound_method_of_a_plugin_holds_every_rule(check):
    code, rows, rest = check(METHOD)
    assert code == 0
    assert rows == {rule.name: "holds" for rule in RULES}
    assert rest == [f"mine: {len(RULES)} of {len(RULES)} rules hold, 0 broken, 0 not applicable"]


def test_a_broken_rule_says_why_and_where(check):
    code, rows, rest = check(METHOD.replace("        return", "        student.logits.max().item()\n        return"))
    assert code == 1
    broken = {name: row for name, row in rows.items() if row != "holds"}
    assert list(broken) == ["no_wait"]
    assert broken["no_wait"].startswith("broken: ")
    assert f"({check.file}:18)" in broken["no_wait"]
    assert "(the rule: A step never waits for the device.)" in broken["no_wait"]
    assert rest == [f"mine: {len(RULES) - 1} of {len(RULES)} rules hold, 1 broken, 0 not applicable"]


def test_overrides_of_the_method_and_of_the_networks_act(check):
    code, rows, _ = check(METHOD, "method.beta=0", "student=lenet5", "teacher=wrn_10_2")
    assert code == 1
    assert "the student's gradient does not depend on the teacher" in rows["attention_to_the_teacher"]
    assert rows["mean_over_samples"] == "holds"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (METHOD.replace("        self.beta = beta", "        self.beta = {}[beta]"), 15, "KeyError: 1.0"),
        (METHOD + "\nraise OSError('no\\nlicence')\n", 20, "OSError: no licence"),
        (METHOD.replace("4.0)}", "T)}"), 18, "NameError: name 'T' is not defined"),
    ],
    ids=["in __init__", "in the import", "in losses"],
)
def test_whatever_its_code_raises_is_a_line_with_its_place(check, text, line, reason):
    code, rows, _ = check(text)
    assert code == 1
    assert list(rows) == [rule.name for rule in RULES]
    for name in ("gradients", "no_wait", "resumption"):
        assert f"{reason} ({check.file}:{line})" in rows[name]


def test_a_method_that_refuses_two_classes_is_not_checked_with_two(check):
    prepare = """
    def prepare(self, student, teacher):
        if student.num_classes == 2:
            raise UserError("mine needs 3 classes")
"""
    code, rows, _ = check("from kdbench.errors import UserError\n" + METHOD + prepare)
    assert code == 0
    assert rows["few_classes"] == "not applicable: it refuses the networks: mine needs 3 classes"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["method.beta=-1"], ["method.beta=-1 is not allowed: it must be float >= 0"]),
        (["method.betta=1"], ["unknown key method.betta; nearest: method.beta"]),
        (["dataset=cifar100"], ["dataset=cifar100 is not possible", "allowed are method, plus, student and teacher"]),
        (["recipe.epochs=3"], ["recipe.epochs=3 is not possible"]),
        (["teacher.recipe.lr=3"], ["teacher.recipe.lr=3 is not possible"]),
        (["plus=[mine]"], ["plus=[mine] is not possible: it is the method already"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_what_is_not_possible_is_refused_in_a_line(check, overrides, parts):
    code, _, (line,) = check(METHOD, *overrides)
    assert code == 2
    for part in parts:
        assert part in line


def test_a_method_must_be_named_and_known(capsys):
    assert cli.main(["check"]) == 2
    assert "method=NAME must be given" in capsys.readouterr().err
    assert cli.main(["check", "method=kdd"]) == 2
    assert "method=kdd is not known; nearest: kd" in capsys.readouterr().err


def test_what_depends_on_other_runs_says_that_they_were_not_made(capsys):
    assert cli.main(["check", "method=lwkd"]) == 0
    assert "the runs that the method depends on were not made" in capsys.readouterr().out


def test_a_refusal_imports_no_torch():
    code = "import sys; from kdbench import cli; cli.main(['check', 'dataset=fake']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, timeout=60).returncode == 0

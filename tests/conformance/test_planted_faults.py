"""Each rule catches the fault that it is there for, and no other rule does; a sound method breaks none."""

import pytest

from kdbench.config import plugins
from kdbench.conformance.subject import Subject
from kdbench.conformance.suite import RULES, verdicts
from tests.helpers.faulty_methods import WRONG, Sound, Wrong, yaml_of

NAMES = [f"wrong{number}_{wrong.method.__name__.lower()}" for number, wrong in enumerate(WRONG)]


@pytest.fixture(autouse=True, scope="module")
def plugin(tmp_path_factory):
    """The faulty methods, and a sound one, as options."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "conf/method").mkdir(parents=True)
    for name, wrong in zip([*NAMES, "sound"], [*WRONG, Wrong(Sound, "", "")], strict=True):
        (folder / f"conf/method/{name}.yaml").write_text(yaml_of(name, wrong))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, str(folder))
        patch.syspath_prepend(str(folder))  # restores Python's path at the end
        patch.setenv("PYTHONPATH", "")
        yield


def broken_by(name):
    said = verdicts(Subject.of([f"method={name}"]))
    return {verdict.rule.name: verdict.why for verdict in said if verdict.state == "broken"}


@pytest.mark.parametrize(("name", "wrong"), list(zip(NAMES, WRONG, strict=True)), ids=NAMES)
def test_a_fault_is_caught_by_its_rule_alone(name, wrong):
    broken = broken_by(name)
    assert list(broken) == [wrong.rule], broken
    assert wrong.said in broken[wrong.rule]
    assert "\n" not in broken[wrong.rule]


def test_a_sound_method_breaks_no_rule():
    assert not broken_by("sound")


def test_there_is_a_fault_for_each_rule():
    assert {wrong.rule for wrong in WRONG} == {rule.name for rule in RULES}


def test_rules_have_names_of_their_own_and_one_sentence_each():
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.statement.endswith(".")
        assert ". " not in rule.statement

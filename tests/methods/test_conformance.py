"""Every method keeps the rules of `kdbench.conformance`; a new one is tested once it has a file in `conf/method/`."""

import pytest

from kdbench.config.groups import addable_methods, content, header, options
from kdbench.conformance.subject import Subject
from kdbench.conformance.suite import RULES, verdict
from kdbench.conformance.toys import batch_of, total
from kdbench.errors import UserError
from tests.helpers.methods import attached, config_of, fill_bank

METHODS = options("method")
WITHOUT_TEACHER = [name for name in METHODS if "teacher" not in content(f"method/{name}")["needs"]]
# Methods that compare the samples of a batch with each other.
COMPARING = ["one", "rkd", "rkd_a", "rkd_d", "skd", "sp"]
# Methods that cannot be added to others: their headers say so, or they begin with a stage of their own.
NOT_ADDABLE = [name for name in METHODS if header(f"method/{name}")["plus"]] + ["fsp"]
# What else a rule does not apply to, and only that.
NOT_APPLICABLE = {
    "frozen_teacher": WITHOUT_TEACHER,
    "attention_to_the_teacher": WITHOUT_TEACHER,
    "mean_over_samples": COMPARING,
    "addable": NOT_ADDABLE,
    "declared_reads": WITHOUT_TEACHER,
    "mixed_labels": ["bss", "lwkd", "tfkd_reg"],  # they split or choose by the label
}
# The same target for a sample whenever it comes, which is drawn anew by default.
SAME_TARGETS = {("lwkd", "mean_over_samples"): ["method.pairing=fixed"]}


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_every_rule(name, rule):
    subject = Subject(config_of(name, *SAME_TARGETS.get((name, rule.name), [])), receive=fill_bank)
    _, state, why = verdict(rule, subject)
    expected = "not applicable" if name in NOT_APPLICABLE.get(rule.name, []) else "holds"
    assert state == expected, why


@pytest.mark.parametrize(("name", "added"), [(n, a) for n in METHODS for a in addable_methods() if a != n])
def test_every_addable_loss_works_with_every_method_or_says_why_not(name, added):
    others = [other for other in addable_methods() if other != name]
    config = config_of(name, f"plus=[{','.join(others)}]")
    options = config["plus"][added]
    if options.get("training") == "staged":
        with pytest.raises(UserError, match=rf"plus=\[{added}\] is not possible: .* plus.{added}.training=joint"):
            attached({**config, "plus": {added: options}})
        options = {**options, "training": "joint"}
    method = attached({**config, "plus": {added: options}})
    method.enter_epoch(method.total_epochs - 1)
    losses = method.batch_losses(batch_of())
    added_losses = {key: loss for key, loss in losses.items() if key.startswith(f"plus_{added}")}
    assert added_losses
    assert len(losses) > len(added_losses)
    total(added_losses).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())

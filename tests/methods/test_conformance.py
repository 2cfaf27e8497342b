"""Every method keeps the rules of `kdbench.conformance`; a new one is tested once it has a file in `conf/method/`."""

import re

import pytest
import torch

from kdbench.config.groups import addable_methods, content, header, options
from kdbench.conformance.subject import Subject
from kdbench.conformance.suite import RULES, verdict
from kdbench.conformance.toys import batch_of, total
from kdbench.errors import UserError
from tests.helpers.methods import attached, config_of, fill_bank

METHODS = options("method")
WITHOUT_TEACHER = [name for name in METHODS if "teacher" not in content(f"method/{name}")["needs"]]
# Methods that compare the samples of a batch with each other.
COMPARING = ["catkd", "cc", "crd", "dist", "one", "pkt", "rkd", "rkd_a", "rkd_d", "skd", "sp", "srd", "srrl"]
# Methods that cannot be added to others: their headers say so, or they begin with a stage of their own.
NOT_ADDABLE = [name for name in METHODS if header(f"method/{name}")["plus"]] + ["ab", "fsp"]
# What else a rule does not apply to, and only that.
NOT_APPLICABLE = {
    "frozen_teacher": WITHOUT_TEACHER,
    "attention_to_the_teacher": WITHOUT_TEACHER,
    "mean_over_samples": COMPARING,
    "addable": NOT_ADDABLE,
    "declared_reads": WITHOUT_TEACHER,
    # they use the classifiers of the networks, which the toys do not have
    **{rule: ["catkd", "srrl"] for rule in ("saturated_logits", "few_classes", "named_non_finite_loss")},
    "mixed_labels": ["bss", "crd", "lwkd", "rld", "tfkd_reg"],  # they split or choose by the label
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


@pytest.mark.parametrize("name", METHODS)
def test_all_addable_losses_work_with_a_method(name):
    config = config_of(name, f"plus=[{','.join(other for other in addable_methods() if other != name)}]")
    staged = [added for added, options in config["plus"].items() if options.get("training") == "staged"]
    for added in staged:
        with pytest.raises(UserError, match=rf"plus=\[{added}\] is not possible: .* plus.{added}.training=joint"):
            attached({**config, "plus": {added: config["plus"][added]}})
    joint = {added: {**config["plus"][added], "training": "joint"} for added in staged}
    method = attached({**config, "plus": {**config["plus"], **joint}})
    method.enter_epoch(method.total_epochs - 1)
    losses = method.batch_losses(batch_of())
    parameters = list(method.student.parameters())
    for added in config["plus"]:
        own = {key: loss for key, loss in losses.items() if re.fullmatch(rf"plus_{added}(_.*)?", key)}
        assert own, added
        gradients = torch.autograd.grad(total(own), parameters, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), added

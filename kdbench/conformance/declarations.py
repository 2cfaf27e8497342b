"""Rules about what a method's YAML says of it."""

import inspect

import torch
from hydra.utils import get_class

from kdbench.config.groups import content, file_of, header, method_options
from kdbench.config.rules import rules_of
from kdbench.conformance.subject import NotApplicable, Rule, RuleBroken, Subject, must
from kdbench.conformance.toys import toy_batch
from kdbench.methods.method import Method
from kdbench.records.identity import needs_teacher


def declared_teacher(subject: Subject) -> None:
    """The class derives from `Method` exactly if `needs` in the YAML names a teacher."""
    declared = subject.config["method"]
    derives, needed = issubclass(get_class(declared["_target_"]), Method), "teacher" in declared["needs"]
    file = file_of(f"method/{subject.name}")
    must(derives or not needed, f"{declared['_target_']} learns from no teacher, but {file} says needs: [teacher]")
    must(needed or not derives, f"{declared['_target_']} derives from Method, but {file} lacks needs: [teacher]")


def declared_options(subject: Subject) -> None:
    """The arguments of the class are the keys of the YAML, and each key has a rule."""
    option, target = f"method/{subject.name}", subject.config["method"]["_target_"]
    arguments = inspect.signature(get_class(target)).parameters.values()
    for argument in arguments:
        named = argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        must(named, f"{target} takes {argument}, which hides the names of its arguments")
    names, keys = {argument.name for argument in arguments}, set(method_options(content(option)))
    file, rules = file_of(option), rules_of(option)
    for name in sorted(names ^ keys):
        place = f"is an argument of {target}, but no key of {file}" if name in names else f"of {file} is no argument"
        raise RuleBroken(f"{name} {place}")
    for key in sorted(keys):
        ruled = any(rule == key or rule.startswith(f"{key}.") for rule in rules)
        must(ruled, f"{key} of {file} has no rule: a comment `# <rule>: <meaning>` behind it")


def acceptance(subject: Subject) -> None:
    """The method can be made, and accepts the student and the teacher of the configuration."""
    networks = f"student={subject.config['student']['name']}"
    if needs_teacher(subject.config):
        networks += f" teacher={subject.config['teacher']['name']}"
    try:
        subject.attached()
    except NotApplicable as refusal:
        raise RuleBroken(f"{refusal}: {networks}; name others on the command line") from None


def addable(subject: Subject) -> None:
    """Added to another method by `plus`, the method gives the losses that it has alone, or its header says why not."""
    if why := header(f"method/{subject.name}")["plus"]:
        raise NotApplicable(f"it cannot be added to another: {why}")
    own = subject.config["method"]
    alone = Subject({**subject.config, "plus": {}}, subject.receive).on_toys()
    host = {**subject.config, "method": content("method/ce"), "plus": {subject.name: own}}
    together = Subject(host, subject.receive).on_toys()
    train_only = {key: value for key, value in alone.state_dict().items() if not key.startswith("student.")}
    together.plus[subject.name].load_state_dict(train_only)
    torch.manual_seed(0)
    expected = {key: loss for key, loss in alone.batch_losses(toy_batch()).items() if key != "ce"}
    torch.manual_seed(0)
    losses = together.batch_losses(toy_batch())
    for key, loss in expected.items():
        name = f"plus_{subject.name}" if key == subject.name else f"plus_{subject.name}_{key}"
        must(
            name in losses and torch.allclose(losses[name], loss),
            f"its loss {key} is lost or another one when `plus` adds it to ce: compute it in `losses`, "
            "or give the reason in the header of the YAML, `# plus: ...`",
        )


RULES = tuple(map(Rule.of, (declared_teacher, declared_options, acceptance, addable)))

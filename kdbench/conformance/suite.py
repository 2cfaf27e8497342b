"""All rules, and what they say about a method."""

import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal, NamedTuple

from kdbench.conformance import declarations, losses, networks, promises, steps
from kdbench.conformance.subject import NotApplicable, Rule, RuleBroken, Subject
from kdbench.errors import one_line_of

RULES = (*declarations.RULES, *networks.RULES, *losses.RULES, *promises.RULES, *steps.RULES)


class Verdict(NamedTuple):
    """What a rule says about a method.

    Attributes:
        rule: the rule.
        state: whether it holds.
        why: it does not, or why it has nothing to say; one line.
    """

    rule: Rule
    state: Literal["holds", "broken", "not applicable"]
    why: str = ""


def verdicts(subject: Subject) -> Iterator[Verdict]:
    """What each rule says about a method, one after the other."""
    for rule in RULES:
        yield verdict(rule, subject)


def verdict(rule: Rule, subject: Subject) -> Verdict:
    """What a rule says about a method; whatever the method raises breaks the rule."""
    try:
        rule.check(subject)
    except NotApplicable as reason:
        return Verdict(rule, "not applicable", _one_line(reason))
    except RuleBroken as reason:
        cause = f": {_failure(reason.__cause__, subject)}" if reason.__cause__ else ""
        return Verdict(rule, "broken", _one_line(reason) + cause)
    except Exception as error:  # the code of a method may raise anything
        return Verdict(rule, "broken", _failure(error, subject))
    return Verdict(rule, "holds")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _failure(error: BaseException, subject: Subject) -> str:
    """Kind, message and place of an error, the place being the innermost line of the method's own file."""
    text = one_line_of(error)
    spec = find_spec(subject.config["method"]["_target_"].rpartition(".")[0])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if spec and frame.filename == spec.origin]
    if not frames:
        return text
    place = f" ({frames[-1].filename}:{frames[-1].lineno})"
    return text if text.endswith(place) else text + place

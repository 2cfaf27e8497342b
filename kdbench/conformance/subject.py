"""What a rule is applied to, and what it may say about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kdbench.config.overrides import from_overrides
from kdbench.conformance import toys
from kdbench.conformance.toys import Toy, features_of
from kdbench.errors import UserError
from kdbench.methods.machinery.module import DistillationModule


class RuleBroken(AssertionError):
    """A method breaks a rule; the message says in one line how."""


class NotApplicable(Exception):
    """A rule says nothing about a method; the message says in one line why."""


class Rule(NamedTuple):
    """A rule that every method keeps.

    Attributes:
        name: of the rule.
        statement: one sentence that says what holds.
        check: raises `RuleBroken` or any other error if it does not hold, `NotApplicable` if it has nothing to say.
    """

    name: str
    statement: str
    check: Callable[["Subject"], None]

    @classmethod
    def of(cls, function: Callable[["Subject"], None]) -> "Rule":
        """The rule that a function checks; its docstring is the statement."""
        return cls(function.__name__, " ".join((function.__doc__ or "").split()), function)


def must(holds: bool, otherwise: str) -> None:
    """Raise `RuleBroken` with the message `otherwise` if something does not hold."""
    if not holds:
        raise RuleBroken(otherwise)


@dataclass(frozen=True)
class Subject:
    """A method with its options, in a short run on small networks.

    Attributes:
        config: the checked configuration of the run.
        receive: stands in for the method's own `receive`, because the runs that it may depend on are not made.
    """

    config: Mapping[str, Any]
    receive: Callable[[DistillationModule], None] | None = None

    @classmethod
    def of(cls, overrides: list[str], receive: Callable[[DistillationModule], None] | None = None) -> "Subject":
        """The subject of a command line, which may name method, losses added to it, and networks.

        Raises:
            UserError: an override is wrong.
        """
        given = {override.partition("=")[0] for override in overrides}
        short = [override for override in toys.SHORT if override.partition("=")[0] not in given]
        return cls(from_overrides([*short, *overrides]), receive)

    @property
    def name(self) -> str:
        """Of the method."""
        return self.config["method"]["name"]

    def attached(self, **networks: Any) -> DistillationModule:
        """The method, attached to the networks of the configuration or to those given.

        Args:
            networks: `student` and `teacher`.

        Raises:
            NotApplicable: the method refuses these networks.
        """
        try:
            method = toys.attached(self.config, **networks)
        except UserError as error:
            raise NotApplicable(f"it refuses the networks: {error}") from error
        if self.receive is not None:
            self.receive(method)
        return method

    def on_toys(
        self, count: int = 6, classes: int = 4, scale: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> DistillationModule:
        """The method, attached to toy networks; the arguments are those of `features_of`."""
        student, teacher = (Toy(features_of(count, classes, seed, scale, dtype)) for seed in (1, 2))
        return self.attached(student=student, teacher=teacher)

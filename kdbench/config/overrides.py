"""From command-line overrides to a checked configuration, with every error in one line."""

from kdbench.config.check import check
from kdbench.config.compose import CONFIG_ERRORS, compose
from kdbench.config.explain import explain
from kdbench.config.frozen import FrozenDict
from kdbench.errors import UserError


def from_overrides(overrides: list[str]) -> FrozenDict:
    """Compose and check the configuration that these command-line overrides mean.

    Raises:
        UserError: any override is wrong; the message is one line.
    """
    try:
        return check(*compose(overrides))
    except CONFIG_ERRORS as error:
        raise UserError(explain(error, overrides)) from error

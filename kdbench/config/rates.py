"""Learning rates that depend on the network: `lr: {default: 0.05, mobilenetv2: 0.01}`."""

from collections.abc import Mapping
from typing import Any

from kdbench.config.networks import NETWORKS
from kdbench.config.rules import Rule, nearest
from kdbench.errors import UserError


def rate_of(lr: Any, network: Mapping[str, Any], key: str, rule: Rule) -> Any:
    """The learning rate of a network: the value itself, or that of its name if there is one for each network.

    Args:
        lr: the value of the key; a mapping gives a rate for `default` and for CIFAR networks by name.
        network: the `student` or `teacher` group.
        key: its name, for messages.
        rule: what each rate must obey.

    Raises:
        UserError: a mapping without `default`, with a name that is no network, or with a rate that is not allowed.
    """
    if not isinstance(lr, Mapping):
        return lr
    if "default" not in lr:
        raise UserError(f"{key}={dict(lr)} is not allowed: it lacks default, the rate of all other networks")
    for name, rate in lr.items():
        if name != "default" and name not in NETWORKS:
            raise UserError(f"{key}.{name}={rate} is not allowed: no such network{nearest(str(name), NETWORKS)}")
        if reason := rule.refusal(rate):
            raise UserError(f"{key}.{name}={rate} is not allowed: it {reason}")
    return lr.get(network["name"], lr["default"]) if network["source"] == "cifar" else lr["default"]

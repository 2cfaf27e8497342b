"""Methods by name, attached to the small networks and the toy networks of `kdbench.conformance.toys`."""

from functools import lru_cache

import torch

from kdbench.config.overrides import from_overrides
from kdbench.conformance import toys
from kdbench.conformance.toys import SHORT, SIZES, Loader, Toy, batch_of, features_of, fit, network_of, step, total
from kdbench.methods.lwkd import LWKD, Bank

__all__ = [
    "COLOUR", "SHORT", "SIZES", "Loader", "Toy", "attached", "bank_of", "batch_of", "config_of", "features_of",
    "fill_bank", "fit", "method_of", "network_of", "step", "total", "toy_method",
]  # fmt: skip

COLOUR = {"num_classes": 4, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}


@lru_cache
def config_of(name, *overrides):
    """The configuration of a short run of a method."""
    return from_overrides([f"method={name}", *SHORT, *overrides])


def method_of(name, *overrides, **networks):
    """A method in a short run with these overrides; `networks` go to `attached`."""
    return attached(config_of(name, *overrides), **networks)


def attached(config, **networks):
    """The method of a configuration, attached to the networks it names, or to those given."""
    method = toys.attached(config, **networks)
    fill_bank(method)
    return method


def fill_bank(method):
    """Give `lwkd` random outputs of a teacher, which it would receive from another run."""
    if isinstance(method, LWKD):
        method.bank = bank_of(method.student.shapes.num_classes)


def bank_of(classes, rows=3):
    """Random outputs of a teacher, as many of each class."""
    return Bank(torch.randn(rows * classes, classes), torch.arange(rows * classes) % classes)


def toy_method(name, *overrides, count=6, classes=4, **options):
    """A method attached to toy networks; `options` are those of `features_of`."""
    student, teacher = (Toy(features_of(count, classes, seed, **options)) for seed in (1, 2))
    return method_of(name, *overrides, student=student, teacher=teacher)

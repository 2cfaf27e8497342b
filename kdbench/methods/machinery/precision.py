"""Losses are computed in float32, whatever the precision of the networks."""

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context manager that turns autocast off on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)

"""Means of named scalars over an epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """A scalar became infinite or not a number; the message gives its name, the epoch and the step."""


class Meter:
    """Sums of named scalars over an epoch, kept on their device: one host sync per epoch and none per step.

    Args:
        kind: what to call a scalar in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.names: list[str] = []
        self.steps = 0

    def update(self, scalars: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step."""
        values = torch.stack([scalar.detach() for scalar in scalars.values()]).float()
        if not self.steps:
            self.names = list(scalars)
            self._sums = torch.zeros_like(values)
            self._finite_steps = torch.zeros_like(values)
            self._finite_so_far = torch.ones_like(values)
        self._sums += values
        # Counts the steps before the first one that is not finite.
        self._finite_so_far *= torch.isfinite(values)
        self._finite_steps += self._finite_so_far
        self.steps += 1

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each scalar since the last reset; syncs with the host.

        Raises:
            NonFiniteLoss: a scalar was not finite at some step.
        """
        if not self.steps:
            return {}
        sums, finite_steps = torch.stack([self._sums, self._finite_steps]).tolist()
        for name, count in zip(self.names, finite_steps, strict=True):
            if count < self.steps:
                raise NonFiniteLoss(f"{self.kind} {name!r} is not finite at epoch {epoch}, step {int(count)}")
        return {name: total / self.steps for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Start an epoch."""
        self.steps = 0

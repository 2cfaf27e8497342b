"""Means of named scalars over an epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or not a number; the message names the term, the epoch and the step."""


class Meter:
    """Sums of named scalars over an epoch, kept on their device: one host sync an epoch and none a step.

    Args:
        what: the scalars are, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.names: list[str] = []
        self.steps = 0

    def update(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's terms (scalars)."""
        values = torch.stack([term.detach() for term in terms.values()]).float()
        if not self.steps:
            self.names = list(terms)
            self._sums = torch.zeros_like(values)
            self._finite_steps = torch.zeros_like(values)
            self._alive = torch.ones_like(values)
        self._sums += values
        # counts the steps before the first one that is not finite
        self._alive *= torch.isfinite(values)
        self._finite_steps += self._alive
        self.steps += 1

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each term since the last reset; syncs with the host.

        Raises:
            NonFiniteLoss: a term was not finite at some step.
        """
        if not self.steps:
            return {}
        sums, finite = torch.stack([self._sums, self._finite_steps]).tolist()
        for name, count in zip(self.names, finite, strict=True):
            if count < self.steps:
                raise NonFiniteLoss(f"{self.what} {name!r} is not finite at epoch {epoch}, step {int(count)}")
        return {name: total / self.steps for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Start an epoch."""
        self.steps = 0

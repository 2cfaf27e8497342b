"""The teacher of a run: a network that nothing changes."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.models.features import Features, Network


class Teacher(nn.Module):
    """A frozen network: its weights need no gradients, and it is always in eval mode.

    Attributes:
        network: the network.
        answers: its features for a training batch: `compute`, or what can give the same without a forward pass.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.answers: Callable[[Batch], Features] = self.compute
        self.train(False)

    def compute(self, batch: Batch) -> Features:
        """Features of the images of a batch, as constants."""
        return self(batch.images)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of `images` (B,C,H,W) in [0,1], as constants."""
        return self.network(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B,K) of `images` (B,C,H,W), differentiable with respect to the images."""
        return self.network(images).logits

"""Adversarial attacks, the accuracy of a network under them and their transfer to another network.

The attacks are untargeted and work in pixel space within an L-infinity ball. They apply to any function from images in
[0, 1] to logits in float32 or float64, which normalises the images itself. They do not change the network, but call its
forward pass in its current mode: put it in eval mode first, as `kdbench.models.features.evaluating` does, or its batch
statistics are updated. Except for `Tally.share`, nothing here synchronises with the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0, 1] -> logits (B,K)

# TRADES (Zhang et al., ICML 2019, arXiv 1901.08573) on CIFAR-10, and Sarfraz et al. (ICPR 2020, arXiv 2007.01922)
EPS, STEPS, STEP = 0.031, 20, 0.003


def fgsm(network: Score, images: Tensor, labels: Tensor, eps: float = EPS) -> Tensor:
    """The fast gradient sign method (FGSM): Goodfellow et al., ICLR 2015, arXiv 1412.6572.

    clip(x + eps sign(d CE / dx), 0, 1).

    Args:
        network: its logits for an image must depend on that image alone, as in eval mode.
        images: (B,C,H,W) in [0, 1].
        labels: (B,) int64.
        eps: largest change of a pixel.

    Returns:
        Images (B,C,H,W) in [0, 1], detached from the graph.
    """
    return (images + eps * _gradient_sign(network, images, labels)).clamp(0, 1)


def pgd(
    network: Score,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    eps: float = EPS,
    steps: int = STEPS,
    step: float = STEP,
) -> Tensor:
    """Projected gradient ascent (PGD) on the cross-entropy: Madry et al., ICLR 2018, arXiv 1706.06083.

    Starts at a point drawn uniformly from the ball, and returns the last point even if an earlier one fooled the
    network.

    Args:
        network: its logits for an image must depend on that image alone, as in eval mode.
        images: (B,C,H,W) in [0, 1].
        labels: (B,) int64.
        generator: draws the starting point; a CPU generator draws the same point for every device.
        eps: largest change of a pixel.
        steps: number of steps.
        step: change of a pixel per step.

    Returns:
        Images (B,C,H,W) in [0, 1], detached from the graph.
    """
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    start = torch.rand(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    attacked = (images + eps * (2 * start.to(images.device) - 1)).clamp(low, high)
    for _ in range(steps):
        attacked = (attacked + step * _gradient_sign(network, attacked, labels)).clamp(low, high)
    return attacked


def _gradient_sign(network: Score, images: Tensor, labels: Tensor) -> Tensor:
    """Sign (-1, 0 or 1) of the gradient of the cross-entropy with respect to each pixel.

    CE = log(1 + exp(m)) with m = logsumexp_{k != y} z_k - z_y increases with m, so m's gradient has the same sign.
    Unlike the gradient of the cross-entropy, it neither vanishes nor loses precision where the network is confident.
    """
    label = labels[:, None]
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = network(images)
        margin = logits.scatter(1, label, -torch.inf).logsumexp(1) - logits.gather(1, label)[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), images)
    return gradient.sign()


@dataclass(frozen=True)
class Tally:
    """A number of hits out of a count; the tallies of several batches can be added without leaving the device.

    Attributes:
        hits: () int64.
        count: () int64.
    """

    hits: Tensor | int = 0
    count: Tensor | int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.hits + other.hits, self.count + other.count)

    @property
    def share(self) -> float | None:
        """Hits divided by count, or None if the count is 0; synchronises with the device."""
        count = int(self.count)
        return int(self.hits) / count if count else None


@torch.no_grad()
def robust_accuracy(network: Score, attacked: Tensor, labels: Tensor) -> Tally:
    """How many of the images are classified correctly under attack.

    Args:
        network: the attacked network.
        attacked: adversarial images (B,C,H,W) in [0, 1].
        labels: (B,) int64.
    """
    correct = network(attacked).argmax(1) == labels
    return Tally(correct.sum(), torch.ones_like(labels).sum())


@torch.no_grad()
def transferability(source: Score, target: Score, images: Tensor, attacked: Tensor, labels: Tensor) -> Tally:
    """How many of the adversarial images that fool the attacked network also fool another one.

    Counts the images that both networks classify correctly without the attack and the source misclassifies under it.

    Args:
        source: the attacked network (the teacher).
        target: the other network (the student).
        images: clean images (B,C,H,W) in [0, 1].
        attacked: the adversarial images made from them.
        labels: (B,) int64.
    """
    counted = (source(images).argmax(1) == labels) & (target(images).argmax(1) == labels)
    counted &= source(attacked).argmax(1) != labels
    fooled = target(attacked).argmax(1) != labels
    return Tally((counted & fooled).sum(), counted.sum())

"""Adversarial images, and what they do to a network and to another one.

The attacks are in pixel space, in the L-infinity ball, untargeted, on any function from images in [0, 1] to logits in
float32 or float64; the network normalises the images itself. They change nothing of it, but its forward runs as it is:
bring it into eval mode before, as `kdbench.models.features.evaluating` does, or batch statistics will move. No function
here waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0, 1] -> logits (B,K)

# TRADES (Zhang et al., ICML 2019, arXiv 1901.08573) on CIFAR-10, and Sarfraz et al. (ICPR 2020, arXiv 2007.01922)
EPS, STEPS, STEP = 0.031, 20, 0.003


def fgsm(network: Score, images: Tensor, labels: Tensor, eps: float = EPS) -> Tensor:
    """clip(x + eps sign(d CE / dx)): Goodfellow et al., ICLR 2015, arXiv 1412.6572.

    Args:
        network: its logits of an image depend on that image alone, as in eval mode.
        images: (B,C,H,W) in [0, 1].
        labels: (B,) int64.
        eps: largest change of a pixel.

    Returns:
        Images (B,C,H,W) in [0, 1], constants.
    """
    return (images + eps * _uphill(network, images, labels)).clamp(0, 1)


def pgd(
    network: Score,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    eps: float = EPS,
    steps: int = STEPS,
    step: float = STEP,
) -> Tensor:
    """Projected gradient ascent of the cross-entropy: Madry et al., ICLR 2018, arXiv 1706.06083.

    From a point drawn uniformly from the ball; the last point, whether or not an earlier one fooled the network.

    Args:
        network: its logits of an image depend on that image alone, as in eval mode.
        images: (B,C,H,W) in [0, 1].
        labels: (B,) int64.
        generator: draws the start; one of the CPU gives the same start on every device.
        eps: largest change of a pixel.
        steps: number of steps.
        step: change of a pixel in a step.

    Returns:
        Images (B,C,H,W) in [0, 1], constants.
    """
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    start = torch.rand(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    attacked = (images + eps * (2 * start.to(images.device) - 1)).clamp(low, high)
    for _ in range(steps):
        attacked = (attacked + step * _uphill(network, attacked, labels)).clamp(low, high)
    return attacked


def _uphill(network: Score, images: Tensor, labels: Tensor) -> Tensor:
    """Sign, -1, 0 or 1, of the cross-entropy's gradient by each pixel.

    CE = log(1 + exp(m)) with m = logsumexp_{k != y} z_k - z_y, and rises with m: the signs are those of m's gradient,
    which is no difference of nearly equal numbers, and does not vanish, where a network is sure.
    """
    own = labels[:, None]
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = network(images)
        margin = logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]
        (slope,) = torch.autograd.grad(margin.sum(), images)
    return slope.sign()


@dataclass(frozen=True)
class Tally:
    """How many of those that count are hits; tallies of batches add up, on the device.

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
        """Share of hits, None where nothing counts; waits for the device."""
        count = int(self.count)
        return int(self.hits) / count if count else None


@torch.no_grad()
def robust_accuracy(network: Score, attacked: Tensor, labels: Tensor) -> Tally:
    """How many of all samples are right under attack.

    Args:
        network: the one that was attacked.
        attacked: images (B,C,H,W) in [0, 1].
        labels: (B,) int64.
    """
    right = network(attacked).argmax(1) == labels
    return Tally(right.sum(), torch.ones_like(labels).sum())


@torch.no_grad()
def transferability(source: Score, target: Score, images: Tensor, attacked: Tensor, labels: Tensor) -> Tally:
    """How many of the images that fool the network attacked also fool another one.

    Those count that both networks classify rightly as they are and the source wrongly under attack.

    Args:
        source: the one that was attacked, the teacher.
        target: the student.
        images: (B,C,H,W) in [0, 1].
        attacked: the same, attacked.
        labels: (B,) int64.
    """
    counted = (source(images).argmax(1) == labels) & (target(images).argmax(1) == labels)
    counted &= source(attacked).argmax(1) != labels
    fooled = target(attacked).argmax(1) != labels
    return Tally((counted & fooled).sum(), counted.sum())

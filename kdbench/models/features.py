"""Stage maps, embedding and logits of any network, in one pass; and their shapes, found by a probe."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EVEN_TAPS = 4  # maps taken from a network whose blocks all have one resolution


class Features(NamedTuple):
    """What a network says of a batch.

    Attributes:
        stages: maps (B, C_i, H_i, W_i), first to last; the stem's first where the network gives it; empty for a
            network that gives none.
        embedding: (B, D), the input of the last linear layer.
        logits: (B, K).
    """

    stages: list[Tensor]
    embedding: Tensor
    logits: Tensor

    def float(self) -> "Features":
        """The same in float32; no copy of what is so already."""
        return Features([stage.float() for stage in self.stages], self.embedding.float(), self.logits.float())


class Shapes(NamedTuple):
    """Shapes of the features, without the batch.

    Attributes:
        stages: (C_i, H_i, W_i) of each map.
        embedding: D.
        num_classes: K.
    """

    stages: list[tuple[int, int, int]]
    embedding: int
    num_classes: int


class Origin(NamedTuple):
    """How a network was built.

    Attributes:
        name: of the catalogue or of timm.
        source: `cifar` or `timm`.
        sizes: the other arguments of `kdbench.models.build.build`.
    """

    name: str
    source: str
    sizes: dict[str, Any]


class Network(nn.Module):
    """A network with the methods of a timm model, that normalises its images and returns `Features`.

    Maps: where the network has `forward_intermediates`, one of each stage it lists in `feature_info`; of a network
    whose blocks all have one resolution (ViT, Mixer) four, evenly spaced and ending with the last block.

    Args:
        net: our networks and timm's: `forward_features`, `forward_head(x, pre_logits)`, `get_classifier()`.
        mean: of the images in [0, 1], by channel.
        std: of the images in [0, 1], by channel.

    Attributes:
        shapes: set by `build`, which probes.
        origin: set by `build`.

    Raises:
        ValueError: mean and std of different lengths, a std that is not positive, or a network whose
            classifier is not one layer on a (B, D) embedding.
    """

    net: Any  # timm's models have no common class
    shift: Tensor
    scale: Tensor
    shapes: Shapes
    origin: Origin

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ValueError(f"mean={list(mean)}, std={list(std)}: need a mean and a std > 0 for each channel")
        self.net = net
        classifier = self.net.get_classifier()
        if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Conv2d | nn.ModuleList):
            kind = type(classifier).__name__
            raise ValueError(f"{type(net).__name__}: its classifier ({kind}) is not one layer on a (B, D) embedding")
        self.taps = _taps(net)
        self.normalises = any(mean) or any(s != 1 for s in std)
        # (x - mean) / std as x * scale + shift: one kernel
        shape = (1, -1, 1, 1)
        scale = [1 / s for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale).view(shape), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Features:
        """Features of `images` (B, C, H, W) in [0, 1], float."""
        net, x = self.net, self.normalised(images)
        if self.taps:
            final, stages = net.forward_intermediates(x, indices=self.taps)
        else:
            final, stages = net.forward_features(x), []
        embedding = net.forward_head(final, pre_logits=True)
        return Features(stages, embedding, net.get_classifier()(embedding))

    def normalised(self, images: Tensor) -> Tensor:
        """What `net` sees of `images` (B, C, H, W) in [0, 1]; the images themselves for mean 0 and std 1."""
        return torch.addcmul(self.shift, images, self.scale) if self.normalises else images

    def export_state(self) -> dict[str, Tensor]:
        """The state dict of `net` alone, contiguous as safetensors wants it; loads into `timm.create_model(...)`."""
        return {key: value.contiguous() for key, value in self.net.state_dict().items()}


def _taps(net: Any) -> list[int]:
    if not hasattr(net, "forward_intermediates"):
        return []
    reductions = [info["reduction"] for info in net.feature_info]
    count = len(reductions)
    if count > EVEN_TAPS and len(set(reductions)) == 1:
        return [round(count * (i + 1) / EVEN_TAPS) - 1 for i in range(EVEN_TAPS)]
    return list(range(count))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every sub-module has its own mode back at the end."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def probe(network: Network, in_chans: int, image_size: int) -> Shapes:
    """Shapes of the features of square images, from one image in eval mode; leaves no trace on the network.

    Args:
        network: on any device; on the meta device shapes only.
        in_chans: channels of the images.
        image_size: height and width of the images, in pixels.

    Raises:
        ValueError: the classifier's output is not the network's own, or a map is not (B, C, H, W).
    """
    device = network.scale.device
    pixels = in_chans * image_size**2
    images = torch.linspace(0, 1, pixels, device=device).view(1, in_chans, image_size, image_size)
    name = type(network.net).__name__
    with evaluating(network):
        stages, embedding, logits = network(images)
        own = network.net(network.normalised(images))
    if not all(stage.ndim == 4 for stage in stages):
        raise ValueError(f"{name}: maps of shapes {[tuple(s.shape) for s in stages]} are not (B, C, H, W)")
    same = logits.shape == own.shape and (own.is_meta or torch.allclose(logits, own, 1e-4, 1e-5, equal_nan=True))
    if not same:
        raise ValueError(f"{name}: get_classifier() of forward_head(pre_logits=True) is not the network's output")
    return Shapes([tuple(s.shape[1:]) for s in stages], embedding.shape[1], logits.shape[1])

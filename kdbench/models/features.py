"""Feature maps, embedding and logits of any network, from one forward pass; and their shapes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

EVEN_TAPS = 4  # feature maps taken from a network whose blocks all have the same resolution


class Features(NamedTuple):
    """The outputs of a network for a batch.

    Attributes:
        stages: feature maps (B, C_i, H_i, W_i) in the order of the network, starting with the stem's where there is
            one; empty for a network that does not return feature maps.
        embedding: (B, D), the input of the last linear layer.
        logits: (B, K).
    """

    stages: list[Tensor]
    embedding: Tensor
    logits: Tensor

    def float(self) -> "Features":
        """The same in float32; tensors that are float32 already are not copied."""
        return Features([stage.float() for stage in self.stages], self.embedding.float(), self.logits.float())


class Shapes(NamedTuple):
    """Shapes of the features, without the batch dimension.

    Attributes:
        stages: (C_i, H_i, W_i) of each feature map.
        embedding: D.
        num_classes: K.
    """

    stages: list[tuple[int, int, int]]
    embedding: int
    num_classes: int


class Origin(NamedTuple):
    """How a network was built.

    Attributes:
        name: name of the network in its source.
        source: `cifar` or `timm`.
        sizes: the other arguments of `kdbench.models.build.build`.
    """

    name: str
    source: str
    sizes: dict[str, Any]


class Network(nn.Module):
    """A CIFAR network or timm model that normalises its images and returns `Features`.

    A network with `forward_intermediates` returns one feature map for each stage in its `feature_info`; one whose
    blocks all have the same resolution (ViT, Mixer) returns four, evenly spaced and ending with the last block.

    Args:
        net: a network with `forward_features`, `forward_head(x, pre_logits)` and `get_classifier()`, as in timm.
        mean: mean of each channel of the images in [0, 1].
        std: standard deviation of each channel of the images in [0, 1].

    Attributes:
        taps: indices of the feature maps, as `forward_intermediates` takes them.
        shapes: set by `build`.
        origin: set by `build`.

    Raises:
        ValueError: mean and std differ in length, a std is not positive, or the classifier is not a single layer on a
            (B, D) embedding.
    """

    net: Any  # timm's models have no common base class
    shift: Tensor
    scale: Tensor
    shapes: Shapes
    origin: Origin

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ValueError(f"mean={list(mean)}, std={list(std)}: each channel needs a mean and a std > 0")
        self.net = net
        classifier = self.net.get_classifier()
        if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Conv2d | nn.ModuleList):
            kind = type(classifier).__name__
            raise ValueError(f"{type(net).__name__}: its classifier ({kind}) is not one layer on a (B, D) embedding")
        self.taps = _taps(net)
        self.normalises = any(mean) or any(s != 1 for s in std)
        # (x - mean) / std written as x * scale + shift takes a single kernel
        shape = (1, -1, 1, 1)
        scale = [1 / s for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale).view(shape), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Features:
        """Features of float `images` (B, C, H, W) in [0, 1]."""
        net, x = self.net, self.normalised(images)
        if self.taps:
            final, stages = net.forward_intermediates(x, indices=self.taps)
        else:
            final, stages = net.forward_features(x), []
        embedding = net.forward_head(final, pre_logits=True)
        return Features(stages, embedding, net.get_classifier()(embedding))

    def normalised(self, images: Tensor) -> Tensor:
        """The input of `net` for `images` (B, C, H, W) in [0, 1]; the images themselves if mean is 0 and std is 1."""
        return torch.addcmul(self.shift, images, self.scale) if self.normalises else images

    def export_state(self) -> dict[str, Tensor]:
        """The state dict of `net`, contiguous as safetensors requires; `timm.create_model(...)` can load it."""
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
    """Put a module in eval mode and disable gradients; at the end every sub-module returns to its previous mode."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def probe(network: Network, in_chans: int, image_size: int) -> Shapes:
    """Shapes of the features of square images, from one forward pass that leaves the network unchanged.

    Args:
        network: a network on any device; on the meta device only shapes are checked.
        in_chans: number of image channels.
        image_size: height and width of the images, in pixels.

    Raises:
        ValueError: the classifier's output differs from the network's, or a feature map is not (B, C, H, W).
    """
    device = network.scale.device
    pixels = in_chans * image_size**2
    images = torch.linspace(0, 1, pixels, device=device).view(1, in_chans, image_size, image_size)
    name = type(network.net).__name__
    with evaluating(network):
        stages, embedding, logits = network(images)
        expected = network.net(network.normalised(images))
    if not all(stage.ndim == 4 for stage in stages):
        raise ValueError(f"{name}: feature maps of shapes {[tuple(s.shape) for s in stages]} are not (B, C, H, W)")
    equal = logits.shape == expected.shape
    if equal and not expected.is_meta:
        equal = torch.allclose(logits, expected, 1e-4, 1e-5, equal_nan=True)
    if not equal:
        raise ValueError(f"{name}: get_classifier() of forward_head(pre_logits=True) differs from the network's output")
    return Shapes([tuple(s.shape[1:]) for s in stages], embedding.shape[1], logits.shape[1])

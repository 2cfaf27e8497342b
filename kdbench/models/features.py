"""Feature maps, embedding and logits of any network, from one forward pass; and their shapes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models.outside import NamedModules

EVEN_TAPS = 4  # feature maps taken from a network whose blocks all have the same resolution
_METHODS = ("get_classifier", "forward_features", "forward_head")  # of a network as in timm


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
        options: which network it is, as `kdbench.config.networks.network_options` gives it.
        sizes: the other arguments of `kdbench.models.build.build`.
    """

    options: dict[str, Any]
    sizes: dict[str, Any]


class Network(nn.Module):
    """A CIFAR network, timm model or other network that resizes and normalises its images and returns `Features`.

    A network with `forward_intermediates` returns one feature map for each stage in its `feature_info`; one whose
    blocks all have the same resolution (ViT, Mixer) returns four, evenly spaced and ending with the last block.
    A network without these methods is read by the names of its modules.

    Args:
        net: a network with `forward_features`, `forward_head(x, pre_logits)` and `get_classifier()`, as in timm, or any
            network that returns logits, if `classifier` is given.
        mean: mean of each channel of the images in [0, 1].
        std: standard deviation of each channel of the images in [0, 1].
        stages: names of the modules whose outputs are the feature maps; only with `classifier`.
        classifier: name of the last linear layer, whose input is the embedding; None for a network as in timm.
        resize: height and width, in pixels, to which images of another size are resized; None to take them as they are.

    Attributes:
        classifier: the last linear layer.
        taps: indices of the feature maps, as `forward_intermediates` takes them.
        named: reads the features of a network that is not as in timm; None for one that is.
        shapes: set by `build`.
        origin: set by `build`.

    Raises:
        ValueError: mean and std differ in length, a std is not positive, the classifier is not a single layer on a
            (B, D) embedding, or the network is not as in timm and no classifier is named.
    """

    net: Any  # timm's models have no common base class
    shift: Tensor
    scale: Tensor
    shapes: Shapes
    origin: Origin

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        stages: Sequence[str] | None = None,
        classifier: str | None = None,
        resize: int | None = None,
    ):
        super().__init__()
        if len(mean) != len(std) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ValueError(f"mean={list(mean)}, std={list(std)}: each channel needs a mean and a std > 0")
        self.net = net
        self.resize = resize
        self.named = NamedModules(net, stages or [], classifier) if classifier else None
        if self.named is None and (missing := [name for name in _METHODS if not hasattr(net, name)]):
            raise ValueError(f"{type(net).__name__} has no {missing[0]}(): name its last linear layer, classifier=fc")
        last = self.classifier
        if not isinstance(last, nn.Module) or isinstance(last, nn.Conv2d | nn.ModuleList):
            kind = type(last).__name__
            raise ValueError(f"{type(net).__name__}: its classifier ({kind}) is not one layer on a (B, D) embedding")
        self.taps = [] if self.named else _taps(net)
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
        if self.named is not None:
            return Features(*self.named.forward(net, x))
        if self.taps:
            final, stages = net.forward_intermediates(x, indices=self.taps)
        else:
            final, stages = net.forward_features(x), []
        embedding = net.forward_head(final, pre_logits=True)
        return Features(stages, embedding, net.get_classifier()(embedding))

    @property
    def classifier(self) -> Any:
        """The last linear layer, which maps the embedding to the logits."""
        return self.net.get_classifier() if self.named is None else self.named.classifier

    def normalised(self, images: Tensor) -> Tensor:
        """The input of `net` for `images` (B, C, H, W) in [0, 1]; the images themselves if there is nothing to do."""
        if self.resize is not None and images.shape[-2:] != (self.resize, self.resize):
            # as torchvision resizes; differentiable
            images = F.interpolate(images, (self.resize, self.resize), mode="bilinear", antialias=True)
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
        ValueError: the classifier's output differs from the network's, a feature map is not (B, C, H, W) or not what
            its module returned, or embedding or logits are not (B, D).
    """
    device = network.scale.device
    pixels = in_chans * image_size**2
    images = torch.linspace(0, 1, pixels, device=device).view(1, in_chans, image_size, image_size)
    name = type(network.net).__name__
    with evaluating(network):
        stages, embedding, logits = network(images)
        normalised = network.normalised(images)
        if network.named is None:
            expected = network.net(normalised)
        else:
            expected = logits
            logits = network.classifier(embedding)
            if not expected.is_meta:
                network.named.check_unchanged(network.net, normalised)
    if embedding.ndim != 2 or logits.ndim != 2:
        shapes = f"{tuple(embedding.shape)} and {tuple(logits.shape)}"
        raise ValueError(f"{name}: embedding and logits of shapes {shapes} are not (B, D) and (B, K)")
    if not all(stage.ndim == 4 for stage in stages):
        raise ValueError(f"{name}: feature maps of shapes {[tuple(s.shape) for s in stages]} are not (B, C, H, W)")
    equal = logits.shape == expected.shape
    if equal and not expected.is_meta:
        equal = torch.allclose(logits, expected, 1e-4, 1e-5, equal_nan=True)
    if not equal:
        last = "get_classifier() of forward_head(pre_logits=True)" if network.named is None else "its last linear layer"
        raise ValueError(f"{name}: {last} differs from the network's output")
    return Shapes([tuple(s.shape[1:]) for s in stages], embedding.shape[1], logits.shape[1])

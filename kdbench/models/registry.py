"""Constructors of the CIFAR networks, and their registration with timm as `cifar_<name>`."""

from collections.abc import Callable
from functools import partial

from torch import nn

from kdbench.models.lenet import LeNet5
from kdbench.models.mobilenetv2 import MobileNetV2
from kdbench.models.resnet import ResNet
from kdbench.models.resnet50 import ResNet50
from kdbench.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdbench.models.vgg import VGG
from kdbench.models.wrn import WideResNet

CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, 32, 64) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{factor}": partial(WideResNet, depth, factor)
        for depth, factor in ((10, 2), (16, 1), (16, 2), (28, 2), (40, 1), (40, 2))
    },
    **{f"vgg{depth}": partial(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2": MobileNetV2,
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
    "resnet50": ResNet50,
    "lenet5": LeNet5,
}


def register_with_timm() -> None:
    """Let `timm.create_model` make the CIFAR networks; imports timm."""
    from timm.models import register_model

    for name, construct in CONSTRUCTORS.items():
        register_model(_entrypoint(name, construct))


def _entrypoint(name: str, construct: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def entrypoint(
        pretrained: bool = False,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **kwargs: int,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"cifar_{name} has no pretrained weights: train it, or load a state dict")
        return construct(**kwargs)

    entrypoint.__name__ = f"cifar_{name}"  # timm registers the function under this name
    return entrypoint

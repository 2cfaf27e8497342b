"""The names of the CIFAR networks and where each comes from; free of torch, so that listing them is instant.

A name here is a `student=` or `teacher=` of the command line and, with the prefix `cifar_`, a timm model:
`timm.create_model("cifar_resnet20")`. The makers are in `registry.py`.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a network comes from.

    Attributes:
        paper: authors and title.
        year: of the paper.
        note: what the variant used in distillation papers is, and whose code fixed it.
    """

    paper: str
    year: int
    note: str


_HE = "He et al., Deep Residual Learning for Image Recognition"
_WRN = "Zagoruyko & Komodakis, Wide Residual Networks"
_VGG = "Simonyan & Zisserman, Very Deep Convolutional Networks"


def _resnet(blocks: int, source: str = "as RepDistiller") -> Entry:
    return Entry(_HE, 2016, f"3 x {blocks} basic blocks, widths 16/32/64, 1x1 conv + BN shortcuts; {source}")


def _resnet_x4(blocks: int) -> Entry:
    return Entry(_HE, 2016, f"3 x {blocks} basic blocks, stem 32, widths 64/128/256; as RepDistiller")


def _wrn(blocks: int, factor: int, source: str = "as RepDistiller") -> Entry:
    return Entry(_WRN, 2016, f"3 x {blocks} pre-activation blocks, widths 16/32/64 times {factor}; {source}")


def _vgg(convolutions: int) -> Entry:
    return Entry(_VGG, 2015, f"{convolutions} convolutions with BN, 1 linear layer; as RepDistiller's vgg*_bn")


NETWORKS: dict[str, Entry] = {
    "resnet8": _resnet(1),
    "resnet14": _resnet(2),
    "resnet20": _resnet(3),
    "resnet26": _resnet(4, "RepDistiller's rule, a depth it does not list"),
    "resnet32": _resnet(5),
    "resnet44": _resnet(7),
    "resnet56": _resnet(9),
    "resnet110": _resnet(18),
    "resnet8x4": _resnet_x4(1),
    "resnet32x4": _resnet_x4(5),
    "wrn_10_2": _wrn(1, 2, "RepDistiller's rule, a depth it does not list"),
    "wrn_16_1": _wrn(2, 1),
    "wrn_16_2": _wrn(2, 2),
    "wrn_28_2": _wrn(4, 2, "RepDistiller's rule, a depth it does not list"),
    "wrn_40_1": _wrn(6, 1),
    "wrn_40_2": _wrn(6, 2),
    "vgg8": _vgg(5),
    "vgg11": _vgg(8),
    "vgg13": _vgg(10),
    "vgg16": _vgg(13),
    "vgg19": _vgg(16),
    "mobilenetv2": Entry(
        "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        2018,
        "width 0.5, expansion 6, stem of stride 2, ReLU; as RepDistiller's mobile_half",
    ),
    "shufflenetv1": Entry(
        "Zhang et al., ShuffleNet: An Extremely Efficient CNN for Mobile Devices",
        2018,
        "3 groups, widths 240/480/960, 1x1 stem; as RepDistiller's ShuffleV1",
    ),
    "shufflenetv2": Entry(
        "Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
        2018,
        "width 1, one more block a stage than the paper, 1x1 stem; as RepDistiller's ShuffleV2",
    ),
    "resnet50": Entry(_HE, 2016, "bottlenecks 3/4/6/3, 3x3 stem without pooling; as RepDistiller's ResNet50"),
    "lenet5": Entry(
        "LeCun et al., Gradient-Based Learning Applied to Document Recognition",
        1998,
        "ReLU and max-pooling; images under 32 pixels are centred in a field of 32x32, as in the paper",
    ),
}

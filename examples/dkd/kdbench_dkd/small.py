"""A small network: two stages of one convolution each, `stage1` and `stage2`, and a linear layer, `fc`."""

from collections import OrderedDict

from torch import nn


def _stage(in_chans: int, out_chans: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_chans, out_chans, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_chans), nn.ReLU())


def small(num_classes: int, in_chans: int, width: int = 8) -> nn.Module:
    """A network of two stages.

    Args:
        num_classes: number of logits; kdbench gives that of the data.
        in_chans: number of channels of the images, likewise.
        width: channels of the first stage; the second has twice as many.
    """
    layers = {
        "stage1": _stage(in_chans, width),
        "stage2": _stage(width, 2 * width),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(2 * width, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))

"""ShuffleNet V1 and V2 for images of 32 pixels.

V1: Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018, arXiv
1707.01083. V2: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018, arXiv
1807.11164. Like RepDistiller's ShuffleV1 and ShuffleV2: the stem is a 1x1 convolution to 24 channels without pooling.
V1 has 3 groups and, unlike the paper, a ReLU after the depthwise convolution.

Feature maps are taken after the ReLU, those of V2 after the shuffle. Initialisation: PyTorch's defaults.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork

STEM = 24


class _ShuffleNet(StagedNetwork):
    classifier_name = "linear"

    def __init__(self, num_classes: int, in_chans: int, num_features: int, widths: tuple[int, int, int]):
        super().__init__(num_classes, num_features, list(zip((STEM, *widths), (1, 2, 4, 8), strict=True)))
        self.conv1 = nn.Conv2d(in_chans, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class GroupedBlock(nn.Module):
    """V1: grouped 1x1 convolution, shuffle, 3x3 depthwise, grouped 1x1.

    (B, in_width, H, W) -> (B, width, H/stride, W/stride). With stride 2 the pooled input is concatenated instead of
    added, and its channels are part of `width`.
    """

    def __init__(self, in_width: int, width: int, stride: int, groups: int):
        super().__init__()
        out_width = width - in_width if stride == 2 else width
        inner = out_width // 4
        self.stride = stride
        self.groups = 1 if in_width == STEM else groups
        self.conv1 = nn.Conv2d(in_width, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_width, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """The input is not modified in place."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = _shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            out = torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], 1)
        else:
            out += x
        return F.relu(out, inplace=True)


class ShuffleNetV1(_ShuffleNet):
    """ShuffleNet V1, 3 groups.

    Args:
        num_classes: number of logits.
        in_chans: number of image channels.
    """

    def __init__(self, num_classes: int = 100, in_chans: int = 3):
        super().__init__(num_classes, in_chans, 960, (240, 480, 960))
        self.layer1 = _stage_v1(STEM, 240, 4)
        self.layer2 = _stage_v1(240, 480, 8)
        self.layer3 = _stage_v1(480, 960, 4)
        self.reset_classifier(num_classes)


def _stage_v1(in_width: int, width: int, blocks: int) -> nn.Sequential:
    rest = [GroupedBlock(width, width, 1, groups=3) for _ in range(blocks - 1)]
    return nn.Sequential(GroupedBlock(in_width, width, 2, groups=3), *rest)


class SplitBlock(nn.Module):
    """V2: half of the channels pass unchanged, the others go through 1x1, 3x3 depthwise and 1x1 convolutions.

    (B, width, H, W) -> (B, width, H, W).
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The input is not modified in place."""
        unchanged, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)), inplace=True)
        return _interleave(unchanged, out)


class DownBlock(nn.Module):
    """V2: two branches of stride 2 and half the width: (B, in_width, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(in_width, in_width, 3, 2, padding=1, groups=in_width, bias=False)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_width, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The input is not modified in place."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return _interleave(left, right)


class ShuffleNetV2(_ShuffleNet):
    """ShuffleNet V2 of width 1.

    Args:
        num_classes: number of logits.
        in_chans: number of image channels.
    """

    def __init__(self, num_classes: int = 100, in_chans: int = 3):
        super().__init__(num_classes, in_chans, 1024, (116, 232, 464))
        self.layer1 = _stage_v2(STEM, 116, 3)
        self.layer2 = _stage_v2(116, 232, 7)
        self.layer3 = _stage_v2(232, 464, 3)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.reset_classifier(num_classes)

    def final(self, x: Tensor) -> Tensor:
        """1x1 convolution to 1024 channels, BN and ReLU."""
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


def _stage_v2(in_width: int, width: int, split_blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(in_width, width), *(SplitBlock(width) for _ in range(split_blocks)))


# The shuffles work on channels-last views and return channels_last tensors, the fastest layout on CPU and GPU.


def _shuffle(x: Tensor, groups: int) -> Tensor:
    channels_last = x.movedim(1, -1).unflatten(-1, (groups, -1))
    return channels_last.transpose(-1, -2).flatten(-2).movedim(-1, 1)


def _interleave(left: Tensor, right: Tensor) -> Tensor:
    # concatenates and shuffles two groups in a single copy: l0 r0 l1 r1 ...
    return torch.stack([left.movedim(1, -1), right.movedim(1, -1)], dim=-1).flatten(-2).movedim(-1, 1)

"""The thin residual networks for CIFAR, resnet8 ... resnet110, and the wider resnet8x4 and resnet32x4.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2. As in RepDistiller,
the shortcut of a block that changes the width or the resolution is a 1x1 convolution with BN (option B; the paper's
CIFAR networks pad with zeros, option A), and the x4 networks have a stem of 32 channels and stages of 64/128/256.

Feature maps are taken after the ReLU. Initialisation: convolutions He normal with fan-out, BN weight 1 and bias 0,
classifier PyTorch's default.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork, init_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in_width, H, W) -> (B, width, H/stride, W/stride)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """In-place operations only touch the residual branch, a new tensor, and never `x` or a feature map."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet(StagedNetwork):
    """ResNet of 6n+2 layers in three stages.

    Args:
        depth: 6n+2.
        stem_width: number of channels of the stem.
        width: number of channels of the first stage; the next two have twice and four times as many.
        num_classes: number of logits.
        in_chans: number of image channels.

    Raises:
        ValueError: the depth is not 6n+2.
    """

    stem_names = ("conv1", "bn1")

    def __init__(self, depth: int, stem_width: int = 16, width: int = 16, num_classes: int = 100, in_chans: int = 3):
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"depth={depth}: a CIFAR ResNet has 6n+2 layers (8, 14, 20, ...)")
        super().__init__(num_classes, 4 * width, [(stem_width, 1), (width, 1), (2 * width, 2), (4 * width, 4)])
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.layer1 = _stage(stem_width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        init_convolutions(self)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, stem_width, H, W)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


def projection(in_width: int, width: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block that changes the shape of its input; None for a block that does not."""
    if stride == 1 and in_width == width:
        return None
    return nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _stage(in_width: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_width, width, stride), *rest)

"""ResNet-50 for images of 32 pixels.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385. Like RepDistiller's ResNet50: the
ImageNet network, but with a 3x3 stem of stride 1, without max-pooling and with the stride in the 3x3 convolution.

Feature maps are taken after the ReLU. Initialisation: convolutions He normal with fan-out, BN weight 1 and bias 0,
classifier PyTorch's default.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork, init_convolutions
from kdbench.models.resnet import projection


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, in_width, H, W) -> (B, 4 width, H/stride, W/stride)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = projection(in_width, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """In-place operations only touch the residual branch, a new tensor, and never `x` or a feature map."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet50(StagedNetwork):
    """ResNet of four stages with 3, 4, 6 and 3 bottlenecks.

    Args:
        num_classes: number of logits.
        in_chans: number of image channels.
    """

    stage_names = ("layer1", "layer2", "layer3", "layer4")
    stem_names = ("conv1", "bn1")
    classifier_name = "linear"

    def __init__(self, num_classes: int = 100, in_chans: int = 3):
        super().__init__(num_classes, 2048, [(64, 1), (256, 1), (512, 2), (1024, 4), (2048, 8)])
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1, 3)
        self.layer2 = _stage(256, 128, 2, 4)
        self.layer3 = _stage(512, 256, 2, 6)
        self.layer4 = _stage(1024, 512, 2, 3)
        init_convolutions(self)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 64, H, W)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


def _stage(in_width: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(in_width, width, stride), *rest)

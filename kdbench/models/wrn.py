"""Wide residual networks for CIFAR: wrn_10_2 ... wrn_40_2.

Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146. As in RepDistiller, without dropout.

Feature maps are the residual sums before BN and ReLU, so they may be negative; the stem's is the output of its
convolution. Initialisation: convolutions He normal with fan-out, BN weight 1 and bias 0, classifier PyTorch's default
weights and bias 0.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork, init_convolutions


class PreActivationBlock(nn.Module):
    """Twice BN, ReLU and a 3x3 convolution: (B, in_width, H, W) -> (B, width, H/stride, W/stride).

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input; otherwise it is the input.
    """

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor) -> Tensor:
        """In-place operations only touch new tensors, and never `x`, which may be a feature map."""
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        out = self.conv2(out)
        out += x if self.convShortcut is None else self.convShortcut(active)
        return out


class WideResNet(StagedNetwork):
    """Wide residual network of 6n+4 layers in three stages.

    Args:
        depth: 6n+4.
        factor: widening factor k; the stages have 16k, 32k and 64k channels.
        num_classes: number of logits.
        in_chans: number of image channels.

    Raises:
        ValueError: the depth is not 6n+4.
    """

    stage_names = ("block1", "block2", "block3")
    stem_names = ("conv1",)
    final_norm = "bn1"

    def __init__(self, depth: int, factor: int, num_classes: int = 100, in_chans: int = 3):
        blocks, remainder = divmod(depth - 4, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"depth={depth}: a wide ResNet has 6n+4 layers (10, 16, 22, ...)")
        width = 16 * factor
        super().__init__(num_classes, 4 * width, [(16, 1), (width, 1), (2 * width, 2), (4 * width, 4)])
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, width, 1, blocks)
        self.block2 = _stage(width, 2 * width, 2, blocks)
        self.block3 = _stage(2 * width, 4 * width, 2, blocks)
        self.bn1 = nn.BatchNorm2d(4 * width)
        init_convolutions(self)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 16, H, W)."""
        return self.conv1(x)

    def final(self, x: Tensor) -> Tensor:
        """BN and ReLU of the last residual sum."""
        return F.relu(self.bn1(x), inplace=True)

    def init_classifier(self, linear: nn.Linear) -> None:
        """Default weights, bias 0."""
        nn.init.zeros_(linear.bias)


def _stage(in_width: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [PreActivationBlock(width, width, 1) for _ in range(blocks - 1)]
    layer = nn.Sequential(PreActivationBlock(in_width, width, stride), *rest)
    return nn.Sequential(OrderedDict(layer=layer))  # RepDistiller's module names: block1.layer.0

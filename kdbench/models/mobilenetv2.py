"""MobileNetV2 of half width for images of 32 pixels.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv 1801.04381. Like
RepDistiller's mobile_half: stage 1 has stride 1 where the paper has 2, ReLU replaces ReLU6, and the head keeps its 1280
channels. The seven groups of blocks form four stages, which end where RepDistiller takes its feature maps; the module
names differ from RepDistiller's.

Feature maps are the stem's after its ReLU and the linear outputs of the stages. Initialisation: convolutions He normal
with fan-out, BN weight 1 and bias 0, classifier normal with standard deviation 0.01 and bias 0.
"""

from torch import Tensor, nn

from kdbench.models._base import StagedNetwork, init_convolutions

STEM, HEAD, EXPANSION = 16, 1280, 6


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the width, 3x3 depthwise, 1x1 back without activation.

    (B, in_width, H, W) -> (B, width, H/stride, W/stride); the input is added where the shapes agree.
    """

    def __init__(self, in_width: int, width: int, stride: int, expansion: int):
        super().__init__()
        inner = in_width * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        """The input is not modified in place."""
        out = self.conv(x)
        if self.residual:
            out += x
        return out


class MobileNetV2(StagedNetwork):
    """MobileNetV2 x 0.5, expansion 6.

    Args:
        num_classes: number of logits.
        in_chans: number of image channels.
    """

    stage_names = ("stage1", "stage2", "stage3", "stage4")
    classifier_name = "classifier"

    def __init__(self, num_classes: int = 100, in_chans: int = 3):
        super().__init__(num_classes, HEAD, [(STEM, 2), (12, 2), (16, 4), (48, 8), (160, 16)])
        self.conv1 = _conv_bn_relu(in_chans, STEM, 3, 2)
        first = InvertedResidual(STEM, 8, 1, expansion=1)
        self.stage1 = nn.Sequential(first, *_group(8, 12, 1, 2))
        self.stage2 = nn.Sequential(*_group(12, 16, 2, 3))
        self.stage3 = nn.Sequential(*_group(16, 32, 2, 4), *_group(32, 48, 1, 3))
        self.stage4 = nn.Sequential(*_group(48, 80, 2, 3), *_group(80, 160, 1, 1))
        self.conv2 = _conv_bn_relu(160, HEAD, 1, 1)
        init_convolutions(self)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 16, H/2, W/2)."""
        return self.conv1(x)

    def final(self, x: Tensor) -> Tensor:
        """1x1 convolution to 1280 channels, BN and ReLU."""
        return self.conv2(x)

    def init_classifier(self, linear: nn.Linear) -> None:
        """Weights normal with standard deviation 0.01, bias 0."""
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)


def _group(in_width: int, width: int, stride: int, blocks: int) -> list[InvertedResidual]:
    rest = [InvertedResidual(width, width, 1, EXPANSION) for _ in range(blocks - 1)]
    return [InvertedResidual(in_width, width, stride, EXPANSION), *rest]


def _conv_bn_relu(in_width: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_width, width, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))

"""VGG with batch normalisation and a single linear layer: vgg8 ... vgg19.

Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv 1409.1556.
Like RepDistiller's vgg*_bn: five blocks, with 2x2 max-pooling before each of blocks 1 to 3, and before block 4 only for
images of 64 pixels or more.

Feature maps are taken after the ReLU; the first block is the stem. Initialisation: convolutions He normal with fan-out
and bias 0, BN weight 1 and bias 0, classifier normal with standard deviation 0.01 and bias 0.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork, init_convolutions

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth -> number of convolutions in each block
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
MIN_SIZE = 8  # pixels: three poolings reduce them to 1


class Block(nn.Sequential):
    """3x3 convolutions with BN and ReLU, after 2x2 max-pooling if the input has at least `pool_from` pixels a side."""

    def __init__(self, in_width: int, width: int, convolutions: int, pool_from: int):
        layers: list[nn.Module] = []
        for i in range(convolutions):
            conv = nn.Conv2d(width if i else in_width, width, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.pool_from = pool_from

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) -> (B, width, H', W'), where H' is H or H/2."""
        if min(x.shape[-2:]) >= self.pool_from:
            x = F.max_pool2d(x, 2)
        return super().forward(x)


class VGG(StagedNetwork):
    """VGG of five blocks.

    Args:
        depth: 8, 11, 13, 16 or 19, which counts the paper's three linear layers although there is only one here.
        num_classes: number of logits.
        in_chans: number of image channels.

    Raises:
        ValueError: another depth; in `forward`, images smaller than 8x8 pixels.
    """

    stage_names = ("block1", "block2", "block3", "block4")
    stem_names = ("block0",)
    classifier_name = "classifier"

    def __init__(self, depth: int, num_classes: int = 100, in_chans: int = 3):
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, CONVOLUTIONS))} for VGG")
        super().__init__(num_classes, WIDTHS[-1], list(zip(WIDTHS, (1, 2, 4, 8, 8), strict=True)))
        convolutions = CONVOLUTIONS[depth]
        self.block0 = nn.Sequential(*Block(in_chans, WIDTHS[0], convolutions[0], pool_from=0))
        self.block1 = Block(WIDTHS[0], WIDTHS[1], convolutions[1], pool_from=0)
        self.block2 = Block(WIDTHS[1], WIDTHS[2], convolutions[2], pool_from=0)
        self.block3 = Block(WIDTHS[2], WIDTHS[3], convolutions[3], pool_from=0)
        self.block4 = Block(WIDTHS[3], WIDTHS[4], convolutions[4], pool_from=8)
        init_convolutions(self)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 64, H, W)."""
        if min(x.shape[-2:]) < MIN_SIZE:
            height, width = x.shape[-2:]
            raise ValueError(f"VGG needs images of at least {MIN_SIZE}x{MIN_SIZE} pixels, not {height}x{width}")
        return self.block0(x)

    def init_classifier(self, linear: nn.Linear) -> None:
        """Weights normal with standard deviation 0.01, bias 0."""
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

"""LeNet-5.

LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998. With ReLU and
max-pooling in place of tanh and trainable subsampling, and with all channels of the two convolutions connected: 61,706
parameters for one channel and ten classes. The paper centres its digits of 28 pixels in a field of 32; here, all images
smaller than 32 pixels are centred in this way. Feature maps of larger images are averaged to the 5x5 pixels that the
linear layers expect.

Feature maps are taken after the ReLU. Initialisation: PyTorch's defaults.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.models._base import StagedNetwork

FIELD = 32


class LeNet5(StagedNetwork):
    """LeNet-5; the embedding is the last hidden layer, of 84 units.

    Args:
        num_classes: number of logits.
        in_chans: number of image channels.
    """

    stage_names = ("conv2",)
    stem_names = ("conv1",)
    classifier_name = "fc3"

    def __init__(self, num_classes: int = 100, in_chans: int = 3):
        super().__init__(num_classes, 84, [(6, 1), (16, 2)])
        self.conv1 = nn.Conv2d(in_chans, 6, 5)
        self.conv2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True))
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 6, H-4, W-4), with H and W padded to at least 32."""
        height, width = (max(FIELD - size, 0) for size in x.shape[-2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.relu(self.conv1(x), inplace=True)

    def embed(self, x: Tensor) -> Tensor:
        """Pooling and two linear layers: (B, 16, H', W') -> (B, 84)."""
        x = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 5).flatten(1)
        return F.relu(self.fc2(F.relu(self.fc1(x))))

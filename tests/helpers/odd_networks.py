"""Networks that need to know the size of their images, or whose classifier is not a single linear layer."""

from torch import nn

from tests.helpers.networks import Plain


class Sized(Plain):
    """Keeps the size of the images that it was made for."""

    def __init__(self, num_classes: int, in_chans: int, image_size: int) -> None:
        super().__init__(num_classes, in_chans)
        self.image_size = image_size


class Sequenced(Plain):
    """Its classifier is a sequence of layers."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__(num_classes, in_chans)
        self.fc = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, num_classes))

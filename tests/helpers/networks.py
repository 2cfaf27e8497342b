"""Networks as a researcher may bring them: without any of timm's methods."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """Two stages and a linear layer; dropout of `rate` before it."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 6, rate: float = 0.0) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width))
        self.drop = nn.Dropout(rate)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.stage2(self.stage1(x))).mean((2, 3))))


class Mutating(Plain):
    """Changes the output of its first stage in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(x)
        x.add_(1)
        return self.fc(F.relu(self.stage2(x)).mean((2, 3)))


class Scaling(Plain):
    """Its output is not that of its last linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(Plain):
    """Uses its last linear layer twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(-x)


def plain(**kwargs: int) -> nn.Module:
    return Plain(**kwargs)


def without_channels(num_classes: int) -> nn.Module:
    return Plain(num_classes)


def of_ten_classes() -> nn.Module:
    return Plain(10)


def failing(num_classes: int) -> nn.Module:
    raise RuntimeError(f"no network of {num_classes} classes\nbecause")


def a_tensor() -> Tensor:
    return torch.zeros(1)


NOT_CALLABLE = 3

"""Top-1, top-5 and negative log-likelihood over a data set."""

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Classification(nn.Module):
    """Accumulates on the device; `compute` syncs once.

    `top5` counts the five likeliest classes, or all where there are fewer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        top = min(5, num_classes)
        self.top5 = MulticlassAccuracy(num_classes, top_k=top, average="micro", validate_args=False)
        self.nll = MeanMetric(nan_strategy="disable")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B,K) float32, labels (B,) int64."""
        self.accuracy.update(logits, labels)
        self.top5.update(logits, labels)
        # one by one: with nan_strategy="disable" torchmetrics 1.9 takes every weight for 1
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """`accuracy`, `top5` as fractions and `nll` in nats of everything since the last call; then forgets it."""
        values = {name: metric.compute().item() for name, metric in self.named_children()}  # type: ignore[operator]
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
        return values

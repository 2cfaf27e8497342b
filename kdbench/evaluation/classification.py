"""Top-1 accuracy, top-5 accuracy and negative log-likelihood on a data set."""

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class Classification(nn.Module):
    """Accumulates on the device; only `compute` synchronises.

    `top5` considers the five likeliest classes, or all classes if there are fewer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False)
        self.nll = MeanMetric(nan_strategy="disable")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B,K) float32, labels (B,) int64."""
        self.accuracy.update(logits, labels)
        self.top5.update(logits, labels)
        # one value per sample: with nan_strategy="disable", torchmetrics 1.9 ignores the weight of a batch mean
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """`accuracy` and `top5` (fractions) and `nll` (nats) since the last call; resets the metrics."""
        values = {name: metric.compute().item() for name, metric in self.named_children()}  # type: ignore[operator]
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
        return values

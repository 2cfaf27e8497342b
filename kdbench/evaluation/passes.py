"""Forward passes over a data set in eval mode, on the device and in the precision of a trainer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.evaluation.classification import Classification
from kdbench.models.features import evaluating

Predict = Callable[[Tensor], dict[str, Tensor]]


class Answers(NamedTuple):
    """The outputs of a network for a data set, on the CPU and in the order of the data set.

    Attributes:
        logits: (N,K) float32.
        embeddings: (N,D) float32.
        labels: (N,) int64.
    """

    logits: Tensor
    embeddings: Tensor
    labels: Tensor


@contextmanager
def _inference(trainer: pl.Trainer, module: nn.Module) -> Iterator[None]:
    with evaluating(module), trainer.precision_plugin.forward_context():
        yield


def score(trainer: pl.Trainer, method: nn.Module, loader: Any, predict: Predict) -> dict[str, dict[str, float]]:
    """`accuracy`, `top5` (fractions) and `nll` (nats) of each of a method's predictions.

    Args:
        trainer: its device and precision are used.
        method: the module that `predict` uses; in eval mode during the pass.
        loader: yields batches.
        predict: maps images to logits (B,K) by name.
    """
    metrics: dict[str, Classification] = {}
    with _inference(trainer, method):
        for batch in loader:
            images, labels, *_ = trainer.strategy.batch_to_device(batch)
            for name, logits in predict(images).items():
                if name not in metrics:
                    metrics[name] = Classification(logits.shape[1]).to(logits.device)
                metrics[name].update(logits.float(), labels)
    return {name: metric.compute() for name, metric in metrics.items()}


def score_student(trainer: pl.Trainer, method: nn.Module, loader: Any) -> dict[str, float]:
    """The same as `score`, of the student only."""
    return score(trainer, method, loader, lambda images: {"student": method(images)})["student"]


def answers(trainer: pl.Trainer, network: nn.Module, loader: Any) -> Answers:
    """The outputs of a network for all images of a loader.

    Args:
        trainer: its device and precision are used.
        network: returns `Features`; in eval mode during the pass.
        loader: yields batches, at least one.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with _inference(trainer, network):
        for batch in loader:
            images, labels, *_ = trainer.strategy.batch_to_device(batch)
            features = network(images)
            parts.append((features.logits.float().cpu(), features.embedding.float().cpu(), labels.cpu()))
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))

"""Passes over a data set with a trainer's device and precision; no gradients, modes are restored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.evaluation.classification import Classification

Predict = Callable[[Tensor], dict[str, Tensor]]


class Answers(NamedTuple):
    """What a network says of a data set, on the CPU, in the set's order.

    Attributes:
        logits: (N,K) float32.
        embeddings: (N,D) float32.
        labels: (N,) int64.
    """

    logits: Tensor
    embeddings: Tensor
    labels: Tensor


@contextmanager
def _passing(trainer: pl.Trainer, module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        yield
    module.train(training)


def score(trainer: pl.Trainer, method: nn.Module, loader: Any, predict: Predict) -> dict[str, dict[str, float]]:
    """`accuracy`, `top5` (fractions) and `nll` (nats) on a loader of every prediction.

    Args:
        trainer: whose device and precision are used.
        method: put in eval mode meanwhile.
        loader: of batches.
        predict: from images to logits (B,K) by name.
    """
    counts: dict[str, Classification] = {}
    with _passing(trainer, method):
        for batch in loader:
            images, labels, _ = trainer.strategy.batch_to_device(batch)
            for name, logits in predict(images).items():
                if name not in counts:
                    counts[name] = Classification(logits.shape[1]).to(logits.device)
                counts[name].update(logits.float(), labels)
    return {name: count.compute() for name, count in counts.items()}


def score_student(trainer: pl.Trainer, method: nn.Module, loader: Any) -> dict[str, float]:
    """As `score`, of the student alone."""
    return score(trainer, method, loader, lambda images: {"student": method(images)})["student"]


def answers(trainer: pl.Trainer, network: nn.Module, loader: Any) -> Answers:
    """All that a network says of a loader's images.

    Args:
        trainer: whose device and precision are used.
        network: a module that gives `Features`, put in eval mode meanwhile.
        loader: of batches, at least one.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with _passing(trainer, network):
        for batch in loader:
            images, labels, _ = trainer.strategy.batch_to_device(batch)
            features = network(images)
            parts.append((features.logits.float().cpu(), features.embedding.float().cpu(), labels.cpu()))
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))

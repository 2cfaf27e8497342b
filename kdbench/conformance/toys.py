"""What the rules are applied to: small networks, toy networks whose features are given, batches, a short training."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench.config.networks import network_options
from kdbench.console import silence_lightning
from kdbench.data.batch import Batch
from kdbench.methods.create import create
from kdbench.methods.machinery.module import DistillationModule
from kdbench.methods.machinery.stages import Stage
from kdbench.models._base import StagedNetwork
from kdbench.models.build import build
from kdbench.models.features import Features, Network, Shapes
from kdbench.records.identity import needs_teacher
from kdbench.training.callbacks import Stages

# The data of all batches: four classes of grey 8x8 images.
SIZES: dict[str, Any] = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}
# The overrides of a short run.
SHORT = ["student=resnet8", "teacher=resnet14", "recipe.epochs=2", "recipe.batch_size=8"]
LABELS = torch.tensor([0, 1, 2, 3, 0, 0])


class ToyNet(StagedNetwork):
    """The part of a toy network that can become a branch: its logits."""

    stem_names = ("stem",)

    def __init__(self, logits: Tensor) -> None:
        nn.Module.__init__(self)
        self.branch_logits = nn.Parameter(logits.clone())

    def become_branch(self) -> None:
        """Nothing: it is one."""

    def forward_branch(self, x: Tensor) -> Tensor:
        """The first logits, as many as there are maps."""
        return self.branch_logits[: len(x)]


class Toy(nn.Module):
    """A network whose features are its parameters, so that they can be set.

    Args:
        features: of a batch at least as large as any that it will see.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.net = ToyNet(features.logits)
        self.register_buffer("scale", torch.ones(1, 1, 1, 1))
        self.logits = nn.Parameter(features.logits)
        self.stages = nn.ParameterList(features.stages)
        self.embedding = nn.Parameter(features.embedding)
        shapes: list[Any] = [tuple(stage.shape[1:]) for stage in features.stages]
        self.shapes = Shapes(shapes, features.embedding.shape[1], features.logits.shape[1])

    def forward(self, images: Tensor) -> Features:
        """Its features, which do not depend on the images (B,C,H,W)."""
        count = len(images)
        zero = 0 * images.flatten(1).sum(1, keepdim=True)  # for a gradient with respect to the images
        return Features([s[:count] for s in self.stages], self.embedding[:count], self.logits[:count] + zero)


def features_of(
    count: int, classes: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Features:
    """Random features; with `scale` above 1, all logits are plus or minus `scale`."""
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randn(count, c, s, s, generator=generator) for c, s in ((4, 8), (4, 8), (8, 4), (16, 2))]
    saturated = scale * torch.randn(count, classes, generator=generator).sign()
    normal = torch.randn(count, classes, generator=generator)
    embedding = torch.randn(count, 16, generator=generator)
    logits = saturated if scale > 1 else normal
    return Features([s.to(dtype) for s in stages], embedding.to(dtype), logits.to(dtype))


def network_of(options: Mapping[str, Any], sizes: Mapping[str, Any]) -> Network:
    """The network of a `student` or `teacher` group, with random weights."""
    return build(**network_options(options), **sizes)


def attached(
    config: Mapping[str, Any],
    student: Any = None,
    teacher: Any = None,
    sizes: Mapping[str, Any] = SIZES,
) -> DistillationModule:
    """The method of a configuration, attached to the networks it names, or to those given; always the same weights."""
    torch.manual_seed(0)
    needed = needs_teacher(config)
    student = student or network_of(config["student"], sizes)
    teacher = teacher or (network_of(config["teacher"], sizes) if needed else None)
    method = create(config["method"])
    if isinstance(student, Toy):
        method.another_network = lambda name, number: copy.deepcopy(teacher)  # type: ignore[method-assign]
    plus = {name: create(options) for name, options in config["plus"].items()}
    method.attach(student, teacher if needed else None, plus=plus, recipe=config["recipe"])
    return method


def batch_of(
    count: int = 8,
    classes: int = 4,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Random 8x8 grey images with random labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Batch(images.to(device, dtype), labels.to(device), torch.arange(count, device=device))


def toy_batch(labels: Tensor = LABELS) -> Batch:
    """A batch for toy networks, which ignore the images."""
    return Batch(torch.zeros(len(labels), 1, 8, 8), labels, torch.arange(len(labels)))


class Loader:
    """Three batches an epoch."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        return (batch_of(seed=i) for i in range(3))


def each_stage(method: DistillationModule) -> Iterator[Stage]:
    """Enter one stage of a training after the other, each with means of its own."""
    for stage in method.stages:
        method.stage = stage
        method.loss_meter.reset()
        method.watched_meter.reset()
        yield stage


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of named losses."""
    return torch.stack(list(losses.values())).sum()


def step(method: DistillationModule, batch: Batch) -> Tensor:
    """The loss of a step, also added to the means of the epoch."""
    if method.automatic_optimization:
        loss = method.training_step(batch, 0)
        assert loss is not None  # only a method that updates its networks itself returns None
        return loss
    losses = method.batch_losses(batch)
    method.measure(losses)
    return total(losses)


def fit(method: DistillationModule, *callbacks: pl.Callback, checkpoint: Path | None = None) -> pl.Trainer:
    """Train for all epochs, or from a checkpoint on; returns the trainer."""
    silence_lightning()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=method.total_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Stages(), *callbacks],
    )  # fmt: skip
    trainer.fit(method, Loader(), ckpt_path=checkpoint, weights_only=True)
    return trainer

"""Methods attached to small networks, or to toy networks whose features are given; batches; a short training."""

import copy
from functools import lru_cache

import pytorch_lightning as pl
import torch
from torch import nn

from kdbench.config.networks import network_options
from kdbench.config.overrides import from_overrides
from kdbench.data.batch import Batch
from kdbench.methods.create import create
from kdbench.methods.lwkd import LWKD, Bank
from kdbench.models._base import StagedNetwork
from kdbench.models.build import build
from kdbench.models.features import Features, Shapes
from kdbench.records.identity import needs_teacher
from kdbench.training.callbacks import Stages

SIZES = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}
COLOUR = {"num_classes": 4, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
SHORT = ["student=resnet8", "teacher=resnet14", "recipe.epochs=2", "recipe.batch_size=8"]


@lru_cache
def config_of(name, *overrides):
    """The configuration of a short run of a method."""
    return from_overrides([f"method={name}", *SHORT, *overrides])


def method_of(name, *overrides, **networks):
    """A method in a short run with these overrides; `networks` go to `attached`."""
    return attached(config_of(name, *overrides), **networks)


def attached(config, student=None, teacher=None, sizes=SIZES):
    """The method of a configuration, attached to the networks it names, or to those given."""
    torch.manual_seed(0)
    needed = needs_teacher(config)
    student = student or network_of(config["student"], sizes)
    teacher = teacher or (network_of(config["teacher"], sizes) if needed else None)
    method = create(config["method"])
    if isinstance(student, Toy):
        method.another_network = lambda name, number: copy.deepcopy(teacher)
    plus = {name: create(options) for name, options in config["plus"].items()}
    method.attach(student, teacher if needed else None, plus=plus, recipe=config["recipe"])
    if isinstance(method, LWKD):
        method.bank = bank_of(student.shapes.num_classes)
    return method


def network_of(options, sizes):
    return build(**network_options(options), **sizes)


def bank_of(classes, rows=3):
    """Random outputs of a teacher, as many of each class."""
    return Bank(torch.randn(rows * classes, classes), torch.arange(rows * classes) % classes)


def batch_of(count=8, classes=4, seed=0, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Batch(images.to(device, dtype), labels.to(device), torch.arange(count, device=device))


def total(losses):
    return torch.stack(list(losses.values())).sum()


def step(method, batch):
    """The loss of a step, also added to the means of the epoch."""
    if method.automatic_optimization:
        return method.training_step(batch, 0)
    losses = method.batch_losses(batch)
    method.measure(losses)
    return total(losses)


class Loader:
    """Three batches an epoch."""

    def __len__(self):
        return 3

    def __iter__(self):
        return (batch_of(seed=i) for i in range(3))


def fit(method, *callbacks):
    """Train for all epochs; returns the trainer."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=method.total_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Stages(), *callbacks],
    )  # fmt: skip
    trainer.fit(method, Loader())
    return trainer


class ToyNet(StagedNetwork):
    """The part of a toy network that can become a branch: its logits."""

    stem_names = ("stem",)

    def __init__(self, logits):
        nn.Module.__init__(self)
        self.branch_logits = nn.Parameter(logits.clone())

    def become_branch(self):
        pass

    def forward_branch(self, x):
        return self.branch_logits[: len(x)]


class Toy(nn.Module):
    """A network whose features are its parameters, so that a test can set them."""

    def __init__(self, features):
        super().__init__()
        self.net = ToyNet(features.logits)
        self.register_buffer("scale", torch.ones(1, 1, 1, 1))
        self.logits = nn.Parameter(features.logits)
        self.stages = nn.ParameterList(features.stages)
        self.embedding = nn.Parameter(features.embedding)
        self.shapes = Shapes([tuple(s.shape[1:]) for s in features.stages], features.embedding.shape[1],
                             features.logits.shape[1])  # fmt: skip

    def forward(self, images):
        count = len(images)
        zero = 0 * images.flatten(1).sum(1, keepdim=True)  # for a gradient with respect to the images
        return Features([s[:count] for s in self.stages], self.embedding[:count], self.logits[:count] + zero)


def features_of(count, classes, seed, scale=1.0, dtype=torch.float32):
    """Random features; with `scale` above 1, all logits are plus or minus `scale`."""
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randn(count, c, s, s, generator=generator) for c, s in ((4, 8), (4, 8), (8, 4), (16, 2))]
    saturated = scale * torch.randn(count, classes, generator=generator).sign()
    normal = torch.randn(count, classes, generator=generator)
    embedding = torch.randn(count, 16, generator=generator)
    logits = saturated if scale > 1 else normal
    return Features([s.to(dtype) for s in stages], embedding.to(dtype), logits.to(dtype))


def toy_method(name, *overrides, count=6, classes=4, **options):
    """A method attached to toy networks; `options` are those of `features_of`."""
    student, teacher = (Toy(features_of(count, classes, seed, **options)) for seed in (1, 2))
    return method_of(name, *overrides, student=student, teacher=teacher)

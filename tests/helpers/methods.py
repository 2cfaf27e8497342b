"""Methods attached to small networks, toy networks that are nothing but their features, and batches."""

import copy

import pytorch_lightning as pl
import torch
from torch import nn

from kdbench.config.overrides import from_overrides
from kdbench.data.batch import Batch
from kdbench.methods.create import create
from kdbench.methods.lwkd import Bank
from kdbench.methods.method import Method
from kdbench.models._base import StagedNetwork
from kdbench.models.build import build
from kdbench.models.features import Features, Shapes
from kdbench.training.callbacks import Stages

SIZES = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}


def options(name):
    """The configuration of a short run of a method."""
    return from_overrides([f"method={name}", "recipe.epochs=2", "recipe.batch_size=8"])


def method_of(name, student=None, teacher=None, recipe=None, plus=None, **changes):
    """A method attached to small real networks, or to those given; `changes` go to its options."""
    cfg = options(name)
    torch.manual_seed(0)
    student = student or build("resnet8", **SIZES)
    teacher = teacher or build("resnet14", **SIZES)
    method = create({**cfg["method"], **changes})
    if isinstance(student, Toy):
        method.another_network = lambda *_: copy.deepcopy(teacher)
    needed = isinstance(method, Method) or any(isinstance(part, Method) for part in (plus or {}).values())
    method.attach(student, teacher if needed else None, plus=plus, recipe=recipe or cfg["recipe"])
    if name == "lwkd":
        classes = student.shapes.num_classes
        method.bank = Bank(torch.randn(3 * classes, classes), torch.arange(3 * classes) % classes)
    return method


def batch_of(count=8, classes=4, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return Batch(images.to(device), labels.to(device), torch.arange(count, device=device))


def step(method, batch):
    """The loss of a step, measured."""
    return method.training_step(batch, 0) if method.automatic_optimization else _summed(method, batch)


def _summed(method, batch):
    losses = method.batch_losses(batch)
    method.measure(losses)
    return torch.stack(list(losses.values())).sum()


class Loader:
    """Three batches an epoch."""

    def __len__(self):
        return 3

    def __iter__(self):
        return (batch_of(seed=i) for i in range(3))


def fit(method, *callbacks):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=method.total_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Stages(), *callbacks],
    )  # fmt: skip
    trainer.fit(method, Loader())
    return trainer


class ToyNet(StagedNetwork):
    """What is left of a network that became a branch: logits."""

    stem_names = ("stem",)

    def __init__(self, logits):
        nn.Module.__init__(self)
        self.branch_logits = nn.Parameter(logits.clone())

    def become_branch(self):
        pass

    def forward_branch(self, x):
        return self.branch_logits[: len(x)]


class Toy(nn.Module):
    """A network that is nothing but its features, so that a test can set them."""

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
        count, still = len(images), 0 * images.flatten(1).sum(1, keepdim=True)
        return Features([s[:count] for s in self.stages], self.embedding[:count], self.logits[:count] + still)


def features_of(count, classes, seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.randn(count, c, s, s, generator=generator) for c, s in ((4, 8), (4, 8), (8, 4), (16, 2))]
    logits = scale * torch.randn(count, classes, generator=generator).sign()
    noise = torch.randn(count, classes, generator=generator)
    logits = logits if scale > 1 else noise
    embedding = torch.randn(count, 16, generator=generator)
    return Features([s.to(dtype) for s in stages], embedding.to(dtype), logits.to(dtype))


def toy_method(name, count=6, classes=4, **how):
    return method_of(name, Toy(features_of(count, classes, 1, **how)), Toy(features_of(count, classes, 2, **how)))

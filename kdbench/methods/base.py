"""The contract of a method: Features of student and teacher, and the batch, give a dict of named losses."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench import optim
from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.models.features import Features, Network, Shapes


class NonFiniteLoss(RuntimeError):
    """A loss term became infinite or not a number; the message names the term, the epoch and the step."""


class Teacher(nn.Module):
    """A frozen network: no gradients, and in eval mode whatever anyone calls."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of `images` (B,C,H,W) in [0,1]; constants."""
        return self.network(images)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B,K) of `images` (B,C,H,W), through which a gradient flows to the images."""
        return self.network(images).logits


class Meter:
    """Sums of named scalars over an epoch, kept where they are computed: one host sync an epoch, none a step.

    Args:
        what: the scalars are, for the message.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.names: list[str] = []
        self.steps = 0

    def update(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's terms (scalars)."""
        values = torch.stack([term.detach() for term in terms.values()]).float()
        if not self.steps:
            self.names = list(terms)
            self._sums = torch.zeros_like(values)
            self._finite_steps = torch.zeros_like(values)
            self._alive = torch.ones_like(values)
        self._sums += values
        # counts the steps before the first one that is not finite
        self._alive *= torch.isfinite(values)
        self._finite_steps += self._alive
        self.steps += 1

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each term since the last reset; syncs with the host.

        Raises:
            NonFiniteLoss: a term was not finite at some step.
        """
        if not self.steps:
            return {}
        sums, finite = torch.stack([self._sums, self._finite_steps]).tolist()
        for name, count in zip(self.names, finite, strict=True):
            if count < self.steps:
                raise NonFiniteLoss(f"{self.what} {name!r} is not finite at epoch {epoch}, step {int(count)}")
        return {name: total / self.steps for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Start an epoch."""
        self.steps = 0


class Pace(NamedTuple):
    """How far a stage is: `epoch` of `epochs`, counted from 0."""

    epoch: int
    epochs: int


class Stage(NamedTuple):
    """A part of the training, with an optimiser and a schedule of its own.

    Attributes:
        name: for the record and the screen.
        recipe: as the `recipe` group; its `epochs` are those of the stage.
        losses: named and weighted losses of student, teacher and batch; all that is minimised in the stage.
    """

    name: str
    recipe: dict[str, Any]
    losses: Callable[[Features, Features | None, Batch], dict[str, Tensor]]


def first_stage(name: str, how: Mapping[str, Any], recipe: dict[str, Any], losses: Any) -> Stage:
    """A stage before the recipe's own epochs.

    Args:
        name: of the stage.
        how: `epochs`, its length as a fraction of `recipe.epochs` (at least one epoch), and `lr`, constant, as a
            multiple of `recipe.lr`.
        recipe: of the run; all else is as there.
        losses: as of `Stage`.
    """
    epochs = max(1, round(how["epochs"] * recipe["epochs"]))
    changed = {"epochs": epochs, "lr": how["lr"] * recipe["lr"], "schedule": "constant", "warmup_epochs": 0}
    return Stage(name, {**recipe, **changed}, losses)


def shuffled(features: Features, labels: Tensor, how: str) -> Features:
    """What a network says of other images of the batch: a control.

    Args:
        features: of a batch.
        labels: (B,).
        how: `none`, `batch` (a random permutation) or `class` (one that keeps to the images of the same label).
    """
    if how == "none":
        return features
    noise = torch.rand(labels.shape, dtype=torch.float64, device=labels.device)
    if how == "batch":
        order = noise.argsort()
    else:
        # sorted by label, once at random within a label and once not: what stands in the same place is exchanged
        order = torch.empty_like(labels).scatter(0, labels.argsort(stable=True), (labels + noise).argsort())
    return Features([maps[order] for maps in features.stages], features.embedding[order], features.logits[order])


def exact(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off, for losses."""
    return torch.autocast(tensor.device.type, enabled=False)


class Method(pl.LightningModule):
    """A way to train a student.

    A subclass takes its own options in `__init__` and defines `losses`; where it trains modules beside the student
    it makes them in `prepare`; where it begins with another training it says so in `before`. Methods that need more
    forward passes than one of the student and one of the teacher (`needs: [step]` in their YAML) override `terms`.
    Everything else is here. `attach` gives it the networks.
    """

    # the loss is a mean over samples; False where samples of a batch are compared with each other
    per_sample: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.label_weight = 1.0  # of the cross-entropy on the labels
        self.meter = Meter("loss term")
        self.watch = Meter("watched value")
        self.notes: dict[str, Tensor] = {}  # scalars of a step that are recorded and not minimised
        self.plus = nn.ModuleDict()
        self.pace = Pace(0, 1)
        self.stages: list[Stage] = []
        self.student: Network
        self.teacher: Teacher | None

    # ---------------------------------------------------------------- what a method defines

    def prepare(self, student: Shapes, teacher: Shapes | None) -> None:
        """Make train-only modules from the shapes of the features; raise `UserError` if the pair cannot work."""

    def before(self, recipe: dict[str, Any]) -> list[Stage]:
        """Stages that come before the recipe's own epochs."""
        return []

    def losses(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Named losses beside the cross-entropy on the labels, each already weighted; float32 scalars."""
        raise NotImplementedError

    def slower(self) -> list[tuple[nn.Module, float]]:
        """Train-only modules whose learning rate is a multiple of the recipe's, with that multiple."""
        return []

    def transform(self, teacher: Features, batch: Batch) -> Features:
        """What the method, and all losses added to it, take for the teacher's answer."""
        return teacher

    def review(self, watched: Mapping[str, float]) -> str | None:
        """A warning about an epoch's means of `notes`, if there is reason for one."""
        return None

    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B,K) of the student (`student`, the headline) and of whatever else is trained to classify."""
        return {"student": self(images)}

    # ---------------------------------------------------------------- what every method has

    def attach(
        self,
        student: Network,
        teacher: Network | None,
        plus: Mapping[str, "Method"] | None = None,
        recipe: dict[str, Any] | None = None,
        another: Callable[[str | None, int], Network] | None = None,
        shuffle: str = "none",
    ) -> Self:
        """Give the method its networks, the losses added to it and its recipe; returns itself.

        The teacher is no sub-module: it is neither trained, nor saved, nor switched to train mode.

        Args:
            student: to be trained; its weights are the result.
            teacher: frozen from here on.
            plus: methods whose `losses` are added, by name.
            recipe: the `recipe` group; None where nothing will be trained.
            another: `another(name, number)` makes one more network for the same data, of the student's kind for
                None, from the random stream of that number.
            shuffle: of the teacher's answers, as `shuffled`.

        Raises:
            UserError: the method, or one added to it, cannot work with these networks or with each other.
        """
        self.student = student
        object.__setattr__(self, "teacher", None if teacher is None else Teacher(teacher))
        self.another, self.shuffle = another, shuffle
        self.plus.update(plus or {})
        for part in self._parts():
            part.prepare(student.shapes, teacher.shapes if teacher else None)
        if recipe is not None:
            for name, part in (plus or {}).items():
                if stages := part.before(recipe):
                    raise UserError(
                        f"plus=[{name}] is not possible: it begins with a stage of its own ({stages[0].name}); "
                        f"plus.{name}.training=joint adds its loss to the method's"
                    )
            self.stages = [*self.before(recipe), Stage("training", recipe, self.all_losses)]
            self.stage = self.stages[0]
        return self

    def _parts(self) -> Iterable["Method"]:
        return (self, *self.plus.values())  # type: ignore[arg-type]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if getattr(self, "teacher", None) is not None:
            self.teacher._apply(fn, recurse)  # type: ignore[union-attr]
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,K) of the student for images (B,C,H,W) in [0,1]."""
        return self.student(images).logits

    # ---------------------------------------------------------------- stages

    @property
    def epochs(self) -> int:
        """Epochs of all stages, the last one up to `stop_after`."""
        whole = sum(stage.recipe["epochs"] for stage in self.stages)
        last = self.stages[-1].recipe
        return whole if last["stop_after"] is None else whole - last["epochs"] + last["stop_after"]

    def enter(self, epoch: int) -> bool:
        """Set stage and pace for an epoch, counted from 0 over all stages; returns whether the stage changed."""
        before = self.stage
        for stage in self.stages:
            if epoch < stage.recipe["epochs"]:
                break
            epoch -= stage.recipe["epochs"]
        self.stage = stage
        for part in self._parts():
            part.pace = Pace(epoch, stage.recipe["epochs"])
        return stage is not before

    def configure_optimizers(self) -> Any:
        """One optimiser for the student and every train-only module; the schedule steps once an epoch."""
        slower = [pair for part in self._parts() for pair in part.slower()]
        optimizer, schedule = optim.build(self.stage.recipe, self.parameters(), slower)
        return [optimizer], [schedule]

    # ---------------------------------------------------------------- the step

    def forwards(self, images: Tensor) -> tuple[Features, Features | None]:
        """Features of student and teacher of images (B,C,H,W), in the run's precision."""
        return self.student(images), None if self.teacher is None else self.teacher(images)

    def weigh(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """The losses of the current stage, in float32."""
        with exact(batch.images):
            if teacher is not None:
                teacher = shuffled(teacher.float(), batch.labels, self.shuffle)
            return self.stage.losses(student.float(), teacher, batch)

    def all_losses(self, student: Features, teacher: Features | None, batch: Batch) -> dict[str, Tensor]:
        """Losses of the recipe's own epochs: `ce`, the method's, and `plus_<name>` for added ones."""
        terms = {"ce": self.label_weight * F.cross_entropy(student.logits, batch.labels)}
        teacher = None if teacher is None else self.transform(teacher, batch)
        terms |= self.losses(student, teacher, batch)
        for name, part in self.plus.items():
            seen = None if teacher is None else part.transform(teacher, batch)  # type: ignore[operator]
            added = part.losses(student, seen, batch)  # type: ignore[operator]
            terms |= {f"plus_{name}" if key == name else f"plus_{name}_{key}": added[key] for key in added}
        return terms

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """All weighted losses of a batch by name."""
        return self.weigh(*self.forwards(batch.images), batch)

    def tally(self, terms: Mapping[str, Tensor]) -> None:
        """Add a step's terms and notes to the epoch's means."""
        self.meter.update(terms)
        notes = dict(self.notes)
        for name, part in self.plus.items():
            notes |= {f"plus_{name}_{key}": note for key, note in part.notes.items()}  # type: ignore[union-attr,operator]
        if notes:
            self.watch.update(notes)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Sum of the terms, which are also counted."""
        self.tally(terms)
        return torch.stack(list(terms.values())).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Sum of the terms; None where the method has updated its networks itself."""
        return self.total(self.terms(batch))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's means."""
        self.meter.reset()
        self.watch.reset()

    def extra_parameters(self) -> int:
        """Number of parameters that are trained beside the student and never exported."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in own)

    def export(self) -> dict[str, Tensor]:
        """State of the student's network alone."""
        return self.student.export_state()

"""The Python API: what `import kdbench` offers. Torch and pandas are imported by the functions that need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from kdbench.config.overrides import from_overrides
from kdbench.config.rules import leaves
from kdbench.errors import RunFailed, UserError
from kdbench.records.identity import imbalance_word, needs_teacher, noise_word
from kdbench.records.record import Record, all_records, default_outputs
from kdbench.specs.resolve import spec_of
from kdbench.specs.spec import RunSpec
from kdbench.sweeps.grid import Refused, read
from kdbench.training.conduct import conduct

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor, nn

    from kdbench.data.batch import Batch
    from kdbench.methods.machinery.module import DistillationModule
    from kdbench.models.features import Network

__all__ = [
    "Record", "RunFailed", "RunSpec", "UserError",
    "batch", "conduct", "grid", "load_student", "make", "method", "network", "run", "runs",
]  # fmt: skip

_COLUMNS = (
    "id", "name", "state", "role", "method", "plus", "teacher", "student", "dataset", "noise", "imbalance", "seed",
    "epochs", "test_accuracy", "val_accuracy", "teacher_test_accuracy", "directory",
)  # fmt: skip


# -------------------------------------------------------------------- runs


def make(*overrides: str) -> RunSpec:
    """The run that these words mean; nothing is trained yet.

    Args:
        overrides: the words of `kdbench-train`: `"method=kd", "teacher=resnet20", "recipe.epochs=10"`.

    Returns:
        What `conduct` takes, with the run's `id`, `name`, `directory`, checked `config` and `dependencies`.

    Raises:
        UserError: a word is wrong, or means several runs.
    """
    try:
        several = [each for each in OverridesParser.create().parse_overrides([*overrides]) if each.is_sweep_override()]
    except HydraException:  # not a word of Hydra's: `spec_of` says so
        several = []
    if several:
        raise UserError(f"{several[0].input_line} means several runs: kdbench.grid(...) makes a list of them")
    return spec_of([*overrides])


def grid(*overrides: str) -> list[RunSpec]:
    """The different runs of a grid, as of `kdbench-train -m`: `grid("method=ce,kd", "seed=0,1,2")`.

    Args:
        overrides: those of `make`, and lists of values, `choice(...)` and `range(...)`.

    Raises:
        UserError: a word is wrong, or one of the runs is not possible.
    """
    jobs = read([*overrides])
    for job in jobs.jobs:
        if isinstance(job, Refused):
            raise UserError(f"{job.label} ({' '.join(job.overrides)}): {job.why}")
    return [task.spec for task in jobs.tasks]


def run(*overrides: str) -> Record:
    """Make a run and bring it to its end, with its teacher: `conduct(make(...))`.

    Args:
        overrides: those of `make`.

    Returns:
        The record, whose `result` holds what was measured. A run that is finished already is not repeated.

    Raises:
        UserError: as `make` and `conduct`.
        RunFailed: as `conduct`.
    """
    return conduct(make(*overrides))


def runs(outputs: Path | str | None = None, *, config: bool = False) -> DataFrame:
    """All runs below a folder, finished or not: one row each.

    Args:
        outputs: root of the records; by default that of `kdbench-train`.
        config: add a column for each key of the configurations: `config.method.temperature`.

    Returns:
        Columns `id name state role method plus teacher student dataset noise imbalance seed epochs test_accuracy
        val_accuracy teacher_test_accuracy directory`. Accuracies are fractions. A value is missing where a run does
        not have it: the accuracy of one that is not finished, the teacher of a method without one.
    """
    import pandas as pd

    records = all_records(default_outputs() if outputs is None else Path(outputs))
    frame = pd.DataFrame([_row(record, config) for record in records])
    return frame.reindex(columns=[*_COLUMNS, *(column for column in frame.columns if column not in _COLUMNS)])


def _row(record: Record, config: bool) -> dict[str, Any]:
    row = {"id": record.id, "name": record.name, "state": record.state, "directory": record.directory}
    if cfg := record.config:
        row |= {
            "method": cfg["method"]["name"],
            "plus": ",".join(cfg["plus"]),
            "teacher": cfg["teacher"]["name"] if needs_teacher(cfg) else None,
            "student": cfg["student"]["name"],
            "dataset": cfg["dataset"]["name"],
            "noise": noise_word(cfg["noise"]),
            "imbalance": imbalance_word(cfg["imbalance"]),
            "seed": cfg["seed"],
            "epochs": cfg["recipe"]["epochs"],
        }
    if result := record.result:
        row |= {
            "role": result["role"],
            "test_accuracy": result["test"]["accuracy"],
            "val_accuracy": result["val"]["accuracy"],
            "teacher_test_accuracy": (result["teacher"] or {}).get("test_accuracy"),
        }
    if config:
        row |= {f"config.{key}": value for key, value in leaves(record.config)}
    return row


def load_student(run: Record | RunSpec | Path | str, outputs: Path | str | None = None) -> Network:
    """The student of a finished run, with its final weights, on the CPU and in eval mode.

    `load_student(run)(images).logits` are the logits (B, K) of images (B, C, H, W) in [0, 1], which the network
    normalises itself; `.stages` and `.embedding` are its features.

    Args:
        run: a record, a run that has been made, the directory of a run, or the beginning of its id or name.
        outputs: root of the records in which an id or a name is looked for; by default that of `kdbench-train`.

    Raises:
        UserError: no such run, several of them, one that is not finished, or weights that are not those of the result.
    """
    from kdbench.models.trained import trained_network

    record = _record(run, default_outputs() if outputs is None else Path(outputs))
    if record.result is None:
        raise UserError(f"{record.directory} is {record.state}: only a finished run has a student")
    return trained_network(record).eval()


def _record(run: Record | RunSpec | Path | str, outputs: Path) -> Record:
    if isinstance(run, Record | RunSpec):
        return Record(run.directory)
    if (here := Record(Path(run).absolute())).state != "new":
        return here
    matching = {
        record.directory.name: record
        for record in all_records(outputs)
        if record.id.startswith(str(run)) or record.directory.name.startswith(str(run))
    }
    if len(matching) != 1:
        which = f"is the beginning of {len(matching)}: {', '.join(matching)}" if matching else "is none of them"
        raise UserError(f"{run} must be the id or the name of one run below {outputs / 'runs'}; it {which}")
    return matching.popitem()[1]


# -------------------------------------------------------------------- methods in a loop of one's own


def network(
    net: nn.Module | str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    image_size: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
) -> Network:
    """A network that returns `Features` (stage maps, embedding, logits), as methods take it.

    Args:
        net: a module as in timm, or any that returns logits, with `classifier`; or the name of one of kdbench's CIFAR
            networks (`resnet20`), which is made anew.
        num_classes: number of logits; for a name only.
        in_chans: number of image channels.
        image_size: height and width of the images, in pixels.
        mean: of each channel of the images in [0, 1], which the network subtracts; 0 by default.
        std: of each channel, by which the network divides; 1 by default.
        stages: names of the modules whose outputs are the stage maps; with `classifier`.
        classifier: name of the last linear layer, whose input is the embedding; not for a module as in timm.

    Raises:
        UserError: no such name, modules that are not there, or a network that does not work with such images.
    """
    from kdbench.models.build import build
    from kdbench.models.features import Network, probe

    mean, std = mean or [0.0] * in_chans, std or [1.0] * in_chans
    if isinstance(net, str):
        if num_classes is None or stages or classifier:
            raise UserError(f"network({net!r}) needs num_classes, and takes neither stages nor classifier")
        return build(net, num_classes=num_classes, in_chans=in_chans, image_size=image_size, mean=mean, std=std)
    if num_classes is not None or (stages and not classifier):
        raise UserError("network(module) takes no num_classes, and stages only together with classifier")
    try:
        wrapped = Network(net, mean, std, stages, classifier)
        wrapped.shapes = probe(wrapped, in_chans, image_size)
    except Exception as error:  # whatever the module raises for images it was not made for
        reason = str(error).partition("\n")[0] or type(error).__name__
        images = f"{in_chans}x{image_size}x{image_size} images"
        raise UserError(f"{type(net).__name__} does not work with {images}: {reason}") from error
    return wrapped


def method(
    *overrides: str, student: Network, teacher: Network | None = None, epochs: int = 1, seed: int = 0
) -> DistillationModule:
    """A method for a training loop of one's own: `method("method=kd", "plus=[at]", student=..., teacher=...)`.

    `batch_losses(batch)` of it are the named losses, each already weighted, whose sum is minimised; `parameters()` are
    those of the student and of the modules that are trained with it. The teacher is frozen. `to(device)` moves all.
    A method that depends on the epoch is told with `enter_epoch(epoch)`, up to `total_epochs`.

    Args:
        overrides: words of the command line for `method` and `plus`: `"method=kd", "method.temperature=2"`.
        student: made by `network`.
        teacher: made by `network`, trained; None for a method without one.
        epochs: of the loop; more come before them for a method with a stage of its own.
        seed: of the modules that the method makes.

    Raises:
        UserError: a word is wrong, the method cannot work with these networks or without runs of its own, or it makes
            several updates of a batch.
    """
    import torch

    from kdbench.data.streams import derive
    from kdbench.methods.create import create

    for word in overrides:
        if word.lstrip("+~").partition("=")[0].partition(".")[0] not in ("method", "plus"):
            raise UserError(f"{word} is not allowed here: only method=..., method.<key>=... and plus=[...]")
    config = from_overrides([*overrides, f"recipe.epochs={epochs}", f"seed={seed}"])
    name = config["method"]["name"]
    if config["method"].get("dependencies"):
        raise UserError(f"method={name} learns from runs of its own: kdbench.run('method={name}', ...) trains them")
    if needs_teacher(config) != (teacher is not None):
        raise UserError(f"method={name} " + ("needs teacher=..." if teacher is None else "takes no teacher"))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(derive(seed, "method"))
        made, plus = create(config["method"]), {key: create(options) for key, options in config["plus"].items()}
        if not made.automatic_optimization:
            raise UserError(f"method={name} makes several updates of a batch: kdbench.run('method={name}', ...) does")
        return made.attach(student, teacher, plus=plus, recipe=config["recipe"], seed=seed)


def batch(images: Tensor, labels: Tensor, index: Tensor | None = None) -> Batch:
    """A batch, as methods take it.

    Args:
        images: (B, C, H, W) float in [0, 1], not normalised.
        labels: (B,) int64.
        index: (B,) int64, positions in the training set, for a method that remembers images; otherwise not needed.
    """
    import torch

    from kdbench.data.batch import Batch

    return Batch(images, labels, torch.arange(len(images), device=images.device) if index is None else index)

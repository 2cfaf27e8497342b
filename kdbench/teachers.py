"""The teacher store: a teacher is a run whose student is the teacher's network; found, or trained once, or loaded."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench import weights
from kdbench.config import content
from kdbench.data import sources
from kdbench.errors import UserError
from kdbench.files import digest
from kdbench.run import Run, file_identity

if TYPE_CHECKING:
    from kdbench.models.features import Network

log = logging.getLogger("kdbench")


class Taught(NamedTuple):
    """A network ready to teach, and what is known of it."""

    network: "Network"
    name: str
    id: str
    test_accuracy: float | None  # None: not measured yet
    seconds: float | None  # of its training; None where it came as a file


def own_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """Configuration of the run that trains the teacher of `cfg`: its network alone, on the same or on clean data."""
    teacher = cfg["teacher"]
    own = copy.deepcopy(cfg)
    own |= {
        "method": content("method/ce"),
        "plus": {},
        "student": {"source": teacher["source"], "name": teacher["name"]},
        "recipe": copy.deepcopy(teacher["recipe"]),
        "seed": teacher["seed"],
        "force": False,
        "stage": "student",
    }
    if teacher["condition"] == "clean":
        own |= {"noise": content("noise/none"), "imbalance": content("imbalance/none")}
    return own


def identity(cfg: dict[str, Any], run_of: Callable[[dict[str, Any]], Run]) -> str:
    """Identity of the teacher of `cfg`: of its own run, or of its checkpoint and how that is used.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if cfg["teacher"]["checkpoint"]:
        how = {key: cfg["teacher"][key] for key in ("source", "name", "mean", "std")}
        return file_identity(Path(cfg["teacher"]["checkpoint"]), how)
    return run_of(own_config(cfg)).id


class Sizes(NamedTuple):
    """What a network has to know of the data."""

    num_classes: int
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def sizes_of(dataset: dict[str, Any]) -> Sizes:
    """What networks have to know of a data set, found without loading it.

    Raises:
        UserError: there is no such data.
    """
    mean, std = sources.normalisation(dataset)
    return Sizes(sources.check(dataset), dataset["channels"], sources.image_size(dataset), mean, std)


def check(cfg: dict[str, Any]) -> None:
    """Refuse a checkpoint that cannot be loaded, before anything else is.

    Raises:
        UserError: it cannot be read, or belongs to another network or other classes.
    """
    if cfg["teacher"]["checkpoint"]:
        sizes = sizes_of(cfg["dataset"])
        weights.check_classes(Path(cfg["teacher"]["checkpoint"]), "teacher.checkpoint", sizes.num_classes)
        from_file(cfg["teacher"], sizes)


def obtain(cfg: dict[str, Any], identity: str, conduct: Callable[[dict[str, Any], str], Run], sizes: Sizes) -> Taught:
    """Find, train or load the teacher.

    Args:
        cfg: the configuration of the run that needs it.
        identity: of the teacher.
        conduct: brings a configuration's run to its end, in a role, and returns it.
        sizes: of the data.

    Raises:
        UserError: weights that cannot be read, are damaged, or belong to another network or other classes.
    """
    teacher = cfg["teacher"]
    if teacher["checkpoint"]:
        return Taught(from_file(teacher, sizes), teacher["name"], identity, None, None)
    return from_run(conduct(own_config(cfg), "teacher"), teacher, sizes)


def from_run(run: Run, teacher: dict[str, Any], sizes: Sizes) -> Taught:
    """The network that a finished run has trained.

    Args:
        run: finished.
        teacher: its `source` and `name`.
        sizes: of the data.

    Raises:
        UserError: its weights are damaged.
    """
    result = run.result()
    assert result is not None
    if digest(run.weights) != result["weights_sha256"]:
        raise UserError(
            f"{run.weights} is not what its result.json describes; remove {run.directory} to train it again"
        )
    network = _build(teacher, sizes, **result["normalisation"])
    weights.load_into(network.net, weights.read(run.weights, "teacher"), str(run.weights))
    return Taught(network, teacher["name"], run.id, result["test"]["accuracy"], result["cost"]["train_seconds"])


def from_file(teacher: dict[str, Any], sizes: Sizes) -> "Network":
    """The network of `teacher.checkpoint`.

    Raises:
        UserError: it cannot be read, or belongs to another network or other classes.
    """
    network = _build(teacher, sizes, teacher["mean"] or sizes.mean, teacher["std"] or sizes.std)
    path = Path(teacher["checkpoint"])
    weights.load_into(network.net, weights.read(path, "teacher.checkpoint"), f"teacher.checkpoint={path}")
    return network


def _build(teacher: dict[str, Any], sizes: Sizes, mean: Sequence[float], std: Sequence[float]) -> "Network":
    from kdbench.models.build import build

    known = sizes._replace(mean=tuple(mean), std=tuple(std))
    return build(teacher["name"], source=teacher["source"], **known._asdict())


def accept(taught: Taught, least: float | None) -> None:
    """Say how good the teacher is.

    Raises:
        UserError: it is worse than `teacher.min_accuracy`.
    """
    assert taught.test_accuracy is not None
    log.info("teacher %s: test accuracy %.2f %%", taught.name, 100 * taught.test_accuracy)
    if least is not None and taught.test_accuracy < least:
        raise UserError(
            f"teacher {taught.name} has test accuracy {taught.test_accuracy:.4f}, below teacher.min_accuracy={least}"
        )

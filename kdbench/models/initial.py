"""Weights that a training starts from."""

import logging
from pathlib import Path

from torch import Tensor

from kdbench.models import fitting
from kdbench.models.features import Network
from kdbench.records import teacher_files, weights

log = logging.getLogger("kdbench")


def start_from(network: Network, path: Path, key: str) -> None:
    """Load weights into a new network.

    The classifier stays new where the file has none or one of other classes, and position embeddings and patch
    embeddings of a transformer are resampled; both are logged. All else must fit.

    Args:
        network: newly made.
        path: safetensors, or a plain state dict of `torch.save`.
        key: the option that named the file, for messages.

    Raises:
        UserError: the file cannot be read, or belongs to another network.
    """
    name = f"{key}={path}"
    state, _ = teacher_files.read(path, key)
    new = _new_classifier(network, state)
    if new:
        log.info("%s: the classifier for %d classes is new", name, network.shapes.num_classes)
    state, notes = fitting.resampled(network, {**state, **new}, name)
    if notes:
        log.info("%s: %s", name, ", ".join(notes))
    weights.load_into(network.net, state, name)


def _new_classifier(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network's classifier if the file lacks it, or has one that differs only in the classes."""
    last = fitting.classifier_name(network)
    wanted = {key: value for key, value in network.net.state_dict().items() if key.startswith(f"{last}.")}
    present = wanted.keys() & state.keys()
    differ = [key for key in present if state[key].shape != wanted[key].shape]
    only_classes = all(state[key].shape[1:] == wanted[key].shape[1:] for key in differ)
    return wanted if not present or (len(present) == len(wanted) and differ and only_classes) else {}

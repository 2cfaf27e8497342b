"""Weights that a training starts from."""

import logging
from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from kdbench.models.features import Network
from kdbench.records import teacher_files, weights

log = logging.getLogger("kdbench")


def start_from(network: Network, path: Path, key: str) -> None:
    """Load weights into a new network.

    The classifier stays new where the file has none or one of other classes, and the position embeddings of a
    transformer are resized; both are logged. All else must fit.

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
    resized = _resized_positions(network, state)
    if resized:
        log.info("%s: position embeddings resized to %s", name, "x".join(map(str, network.net.patch_embed.grid_size)))
    weights.load_into(network.net, {**state, **new, **resized}, name)


def _new_classifier(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network's classifier if the file lacks it, or has one that differs only in the classes."""
    [last] = [name for name, module in network.net.named_modules() if module is network.classifier]
    wanted = {key: value for key, value in network.net.state_dict().items() if key.startswith(f"{last}.")}
    present = wanted.keys() & state.keys()
    differ = [key for key in present if state[key].shape != wanted[key].shape]
    only_classes = all(state[key].shape[1:] == wanted[key].shape[1:] for key in differ)
    return wanted if not present or (len(present) == len(wanted) and differ and only_classes) else {}


def _resized_positions(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The position embeddings of the file, for the number of patches of the network; nothing if they fit already."""
    net, key = network.net, "pos_embed"
    wanted, given = net.state_dict().get(key), state.get(key)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if wanted is None or given is None or grid is None or wanted.ndim != 3 or given.ndim != 3:
        return {}
    prefix = 0 if getattr(net, "no_embed_class", False) else getattr(net, "num_prefix_tokens", 0)
    side = round(max(given.shape[1] - prefix, 0) ** 0.5)
    if wanted.shape == given.shape or side**2 != given.shape[1] - prefix or given.shape[2] != wanted.shape[2]:
        return {}
    return {key: resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)}

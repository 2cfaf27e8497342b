"""Making weights fit a network of other image size, patch size or classes than the one they were trained in."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdbench.errors import UserError, one_line_of
from kdbench.models.features import Network
from kdbench.records import weights

State = Mapping[str, Tensor]


def classifier_name(network: Network) -> str:
    """The name of the network's classifier among the modules of its `net`."""
    [name] = [name for name, module in network.net.named_modules() if module is network.classifier]
    return name


def of_classes(network: Network, state: State, classes: Sequence[int] | None, name: str) -> dict[str, Tensor]:
    """The weights of a teacher whose classifier has outputs for the classes of the data, and for no others.

    Args:
        network: the network that the weights are for, with as many logits as the data have classes.
        state: tensors by name.
        classes: the outputs to keep, counted from 0, in the order of the classes of the data; None to keep all.
        name: the option and its value that named the file, for messages.

    Raises:
        UserError: the file has no such outputs, or without `classes` other classes than the data; or outputs cannot be
            chosen because the classifier is not a linear layer.
    """
    last, layer = classifier_name(network), network.classifier
    if classes is not None and not isinstance(layer, nn.Linear):
        kind = type(layer).__name__
        raise UserError(f"teacher.classes={list(classes)} is not possible: the classifier {last} is {kind}, not Linear")
    wanted = network.net.state_dict()
    rows = {key: state[key] for key in (f"{last}.weight", f"{last}.bias") if key in wanted.keys() & state.keys()}
    if state.keys() != wanted.keys() or any(rows[key].shape[1:] != wanted[key].shape[1:] for key in rows):
        return dict(state)  # of another network, which is refused when it is loaded
    for tensor in rows.values():
        weights.check_head(len(tensor), network.shapes.num_classes, name, classes)
    return {**state, **({} if classes is None else {key: tensor[list(classes)] for key, tensor in rows.items()})}


def resampled(network: Network, state: State, name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a transformer of another image size or patch size, resampled as timm does for its own.

    Args:
        network: the network that the weights are for.
        state: tensors by name, with the names of the network.
        name: the option and its value that named the file, for messages.

    Returns:
        The tensors, and what was resampled, in a few words each; the tensors as they are if resampling makes none fit.

    Raises:
        UserError: timm cannot resample these tensors.
    """
    net = network.net
    wanted = net.state_dict()
    if state.keys() != wanted.keys() or not _misfits(state, wanted):
        return dict(state), []
    result = dict(state)
    if resample := _resampling_of_timm(net):
        try:
            new = resample(dict(state), net)
        except Exception as error:  # timm's functions raise all kinds of errors
            raise UserError(f"{name} belongs to another network: {one_line_of(error)}") from error
        result |= {key: new[key] for key in _misfits(state, wanted) if key in new}
    result |= _positions(net, result)
    if _misfits(result, wanted):
        return dict(state), []
    notes = [f"{key} resampled from {_size(state[key])} to {_size(result[key])}" for key in _misfits(state, wanted)]
    return result, notes


def _misfits(state: State, wanted: State) -> list[str]:
    return [key for key, tensor in wanted.items() if state[key].shape != tensor.shape]


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _resampling_of_timm(net: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None:
    """The function with which timm makes published weights fit a network; None where it has none."""
    for kind in type(net).__mro__:
        function: Any = getattr(sys.modules[kind.__module__], "checkpoint_filter_fn", None)
        if kind.__module__.startswith("timm.") and function and len(inspect.signature(function).parameters) >= 2:
            return function
    return None


def _positions(net: Any, state: State) -> dict[str, Tensor]:
    """The position embeddings for the number of patches of a network; nothing if they fit already."""
    key = "pos_embed"
    wanted, given = net.state_dict().get(key), state.get(key)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if wanted is None or given is None or grid is None or wanted.ndim != 3 or given.ndim != 3:
        return {}
    prefix = 0 if getattr(net, "no_embed_class", False) else getattr(net, "num_prefix_tokens", 0)
    side = round(max(given.shape[1] - prefix, 0) ** 0.5)
    if wanted.shape == given.shape or side**2 != given.shape[1] - prefix or given.shape[2] != wanted.shape[2]:
        return {}
    from timm.layers import resample_abs_pos_embed  # here, because timm takes seconds to import

    return {key: resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)}

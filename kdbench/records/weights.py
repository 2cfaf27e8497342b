"""Reading and writing weights: safetensors, or a plain state dict; never a pickle that runs code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from kdbench.errors import UserError
from kdbench.files import replace_with

if TYPE_CHECKING:
    from torch import Tensor, nn

# what the last layer is called in our networks and in most of timm's
_HEADS = ("fc.weight", "classifier.weight", "linear.weight", "head.weight", "head.fc.weight")


def save(path: Path, state: "Mapping[str, Tensor]", about: dict[str, str]) -> None:
    """Write a state dict as safetensors, whole or not at all.

    Args:
        path: the file.
        state: tensors by name.
        about: metadata of the file.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save_file

    # one entry: the library writes several in random order, and equal weights would not be equal files
    metadata = {"kdbench": json.dumps(about)}
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    replace_with(path, write)


def check_classes(path: Path, key: str, num_classes: int) -> None:
    """Refuse a file that is not there, or by its header alone a safetensors file of other classes; so at once.

    Raises:
        UserError: it cannot be read, or the layer that is called like a classifier has another number of outputs.
    """
    try:
        with safe_open(path, "numpy") as handle:
            for name in set(_HEADS) & set(handle.keys()):
                _check_head(handle.get_slice(name).get_shape()[0], num_classes, f"{key}={path}")
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error}") from error
    except SafetensorError:
        return  # not safetensors: `read` decides


def _check_head(outputs: int, num_classes: int, name: str) -> None:
    if outputs != num_classes:
        raise UserError(f"{name} has {outputs} classes, but the data set has {num_classes}")


def read(path: Path, key: str) -> "dict[str, Tensor]":
    """State dict of a file.

    A state dict may be wrapped as `{"state_dict": ...}`, `{"model": ...}` or `{"net": ...}` and its names may start
    with `module.` (DataParallel).

    Args:
        path: safetensors (by content), or a file of `torch.save` that holds tensors and plain containers only.
        key: the option that named the file, for the message.

    Raises:
        UserError: not there, not readable, or a pickle with anything but tensors in it.
    """
    try:
        with safe_open(path, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error}") from error
    except SafetensorError:
        pass  # not safetensors: a state dict of torch.save, perhaps
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{key}={path} is refused: it is neither safetensors nor a plain state dict; a pickle with anything but "
            "tensors in it could run code, so save the state dict alone"
        ) from error
    return _state(content, f"{key}={path}")


def _state(content: Any, name: str) -> "dict[str, Tensor]":
    from torch import Tensor

    for wrapper in ("state_dict", "model", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not (isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise UserError(f"{name} holds no state dict")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_into(net: "nn.Module", state: "Mapping[str, Tensor]", name: str) -> None:
    """Load a state dict into a network, refusing one of another network or of other classes.

    Args:
        net: the network.
        state: tensors by name.
        name: the option and its value, for the message.

    Raises:
        UserError: names or shapes differ.
    """
    wanted = net.state_dict()
    missing, foreign = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or foreign:
        kind = f"lacks {missing[0]}" if missing else f"has {foreign[0]} besides"
        raise UserError(
            f"{name} belongs to another network: it {kind} ({len(missing)} missing, {len(foreign)} foreign)"
        )
    head = {id(parameter) for parameter in net.get_classifier().parameters()}  # type: ignore[operator]
    for key, value in net.named_parameters():
        if id(value) in head and value.shape[1:] == state[key].shape[1:]:
            _check_head(len(state[key]), len(value), name)
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            shape = list(state[key].shape)
            raise UserError(f"{name} belongs to another network: {key} is {shape}, not {list(value.shape)}")
    net.load_state_dict(dict(state))

"""Reading and writing weights as safetensors, and loading a state dict into the network it belongs to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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


def check_classes(
    path: Path, key: str, num_classes: int, classes: Sequence[int] | None = None, classifier: str | None = None
) -> None:
    """Refuse a file that is not there, or by its header alone a safetensors file of other classes; so at once.

    Args:
        path: the file.
        key: the option that named the file, for messages.
        num_classes: of the data.
        classes: the outputs that are the classes of the data; None if all are.
        classifier: name of the last linear layer; None to look for the usual ones.

    Raises:
        UserError: it cannot be read, or the layer that is called like a classifier does not have such outputs.
    """
    heads = {f"{classifier}.weight"} if classifier else set(_HEADS)
    try:
        with safe_open(path, "numpy") as handle:
            for name in heads & set(handle.keys()):
                check_head(handle.get_slice(name).get_shape()[0], num_classes, f"{key}={path}", classes)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error}") from error
    except SafetensorError:
        return  # not safetensors: `kdbench.records.teacher_files` decides


def check_head(outputs: int, num_classes: int, name: str, classes: Sequence[int] | None = None) -> None:
    """Refuse a classifier that does not have the outputs it must have.

    Args:
        outputs: how many it has.
        num_classes: of the data.
        name: the option and its value that named the file, for the message.
        classes: the outputs that are the classes of the data; None if all are.
    """
    if classes is not None:
        if max(classes) >= outputs:
            raise UserError(
                f"teacher.classes={list(classes)} is not allowed: {name} has {outputs} classes, 0 to {outputs - 1}"
            )
    elif outputs != num_classes:
        hint = "; teacher.classes=[...] says which of its outputs those are" if outputs > num_classes else ""
        raise UserError(f"{name} has {outputs} classes, but the data set has {num_classes}{hint}")


def read(path: Path, key: str) -> "dict[str, Tensor]":
    """State dict of a safetensors file.

    Args:
        path: the file.
        key: the option that named the file, for the message.

    Raises:
        UserError: it is not there, or not readable.
        SafetensorError: its content is something else.
    """
    try:
        with safe_open(path, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error}") from error


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
    classifier = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]
    head = {id(parameter) for parameter in classifier.parameters()} if classifier is not None else set()
    for key, value in net.named_parameters():
        if id(value) in head and value.shape[1:] == state[key].shape[1:]:
            check_head(len(state[key]), len(value), name)
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            shape = list(state[key].shape)
            raise UserError(f"{name} belongs to another network: {key} is {shape}, not {list(value.shape)}")
    net.load_state_dict(dict(state))

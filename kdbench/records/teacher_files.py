"""Teachers as the field publishes them: read without running code, and renamed to fit our networks.

Read are safetensors and files of `torch.save`: a state dict, alone or in a checkpoint of RepDistiller, mdistiller (even
one of the whole distiller), Lightning or timm.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from kdbench.errors import UserError
from kdbench.records import weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "net.", "student.", "teacher.", "_orig_mod.")
_COUNTER = "num_batches_tracked"  # PyTorch 0.4 and older did not save it, and a network in eval mode does not use it
# RepDistiller and mdistiller have seven groups of blocks in MobileNetV2, ours four stages: (stage, first block)
_MOBILENETV2 = ((1, 0), (1, 1), (2, 0), (3, 0), (3, 4), (4, 0), (4, 3))
# What checkpoints hold beside tensors and plain values. None of it is needed, so none of it is created.
_IGNORED_TYPES = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)


class _Ignored:
    """Stands for an object that is not needed; keeps nothing of it."""

    def __new__(cls, *args: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Candidate(NamedTuple):
    """A part of a file that may be the network.

    Attributes:
        prefix: of its names in the file, removed here.
        tensors: by name.
        renamed: whether the names of MobileNetV2 were translated.
    """

    prefix: str
    tensors: "dict[str, Tensor]"
    renamed: bool = False


def state_for(net: "nn.Module", path: Path, key: str) -> "tuple[dict[str, Tensor], list[str]]":
    """The tensors of a teacher file under the names of a network; whether they fit is for others to check.

    Names may start with prefixes such as `module.`. Of a file with a student and a teacher the student is taken, unless
    only the teacher fits. Where `num_batches_tracked` of batch normalisation is missing, it is added.

    Args:
        net: the network, newly made.
        path: the file.
        key: the option that named the file, for messages.

    Returns:
        The tensors by name, and what was done to the content of the file, in a few words each.

    Raises:
        UserError: not there, not readable, or a pickle with anything in it that could run code.
    """
    content, notes = read(path, key)
    wanted, counters = net.state_dict(), _counters(net)
    chosen = max(_candidates(content), key=lambda candidate: _rank(candidate, wanted, counters))
    missing = {counter: wanted[counter] for counter in counters - chosen.tensors.keys()}
    if chosen.prefix:
        notes.append(f"prefix {chosen.prefix} removed")
    if left_out := len(content) - len(chosen.tensors):
        notes.append(f"other tensors left out: {left_out}")
    if chosen.renamed:
        notes.append("blocks of MobileNetV2 renamed")
    if missing:
        notes.append(f"{_COUNTER} added")
    return chosen.tensors | missing, notes


def read(path: Path, key: str) -> "tuple[dict[str, Tensor], list[str]]":
    """State dict of a file, and what it was wrapped in, in a few words each.

    Args:
        path: safetensors, or a file of `torch.save`.
        key: the option that named the file, for messages.

    Raises:
        UserError: not there, not readable, or a pickle with anything in it that could run code.
    """
    try:
        return weights.read(path, key), []
    except SafetensorError:
        return _unwrapped(_read_pickle(path, f"{key}={path}"), f"{key}={path}")


def _read_pickle(path: Path, name: str) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([(_Ignored, ignored) for ignored in _IGNORED_TYPES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise all kinds of errors
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{name} is refused: it is neither safetensors nor a plain state dict; a pickle with anything but tensors "
            f"in it{f', here {culprit[1]},' if culprit else ''} could run code, so save the state dict alone"
        ) from error


def _unwrapped(content: Any, name: str) -> "tuple[dict[str, Tensor], list[str]]":
    from torch import Tensor

    notes = []
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            notes.append(f"read {wrapper}")
            if f"{wrapper}_ema" in content:
                notes.append(f"{wrapper}_ema left out")
            content = content[wrapper]
    items = content.items() if isinstance(content, Mapping) else ()
    if not (items and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items)):
        raise UserError(f"{name} holds no state dict")
    return dict(items), notes


def _candidates(state: "Mapping[str, Tensor]") -> list[_Candidate]:
    """The whole file first, then each part of it that a known prefix, or several one after another, sets off."""
    candidates = []
    for prefix in _prefixes(state):
        tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        candidates.append(_Candidate(prefix, tensors))
        renamed = {_in_our_mobilenetv2(key): value for key, value in tensors.items()}
        if renamed.keys() != tensors.keys() and len(renamed) == len(tensors):
            candidates.append(_Candidate(prefix, renamed, renamed=True))
    return candidates


def _prefixes(names: Iterable[str]) -> list[str]:
    prefixes = [""]
    for prefix in prefixes:  # grows on the way
        longer = (prefix + last for last in _PREFIXES)
        prefixes += [candidate for candidate in longer if any(name.startswith(candidate) for name in names)]
    return prefixes


def _in_our_mobilenetv2(name: str) -> str:
    """A name of RepDistiller's MobileNetV2 in ours; any other name as it is."""
    if match := re.fullmatch(r"blocks\.([0-6])\.(\d+)\.(.+)", name):
        stage, first = _MOBILENETV2[int(match[1])]
        return f"stage{stage}.{first + int(match[2])}.{match[3]}"
    return re.sub(r"^classifier\.0\.", "classifier.", name)


def _counters(net: "nn.Module") -> set[str]:
    """Names of the buffers in which batch normalisation counts batches."""
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = (name for name, module in net.named_modules() if isinstance(module, _BatchNorm))
    return {f"{layer}.{_COUNTER}" for layer in layers} & net.state_dict().keys()


def _rank(candidate: _Candidate, wanted: "Mapping[str, Tensor]", counters: set[str]) -> tuple[bool, bool, int, int]:
    """The names count most, then the shapes, then whether it is a student or a teacher, then how many names it has."""
    tensors = candidate.tensors
    names = tensors.keys() <= wanted.keys() <= tensors.keys() | counters
    shapes = names and all(value.shape == wanted[key].shape for key, value in tensors.items())
    trained = ("student." in candidate.prefix) - ("teacher." in candidate.prefix)
    return names, shapes, trained, len(tensors.keys() & wanted.keys())

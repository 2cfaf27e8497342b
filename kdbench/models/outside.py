"""Networks that are not written for kdbench: found by import path, read by the names of their modules."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, one_line_of
from kdbench.records.source import module_of


def call(path: str, sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """The network that a function or class makes.

    Args:
        path: `package.module.function`.
        sizes: `num_classes`, `in_chans` and `image_size`. Those that the signature names are passed on; `num_classes`
            also if the signature ends in `**kwargs`.
        kwargs: further arguments.

    Raises:
        UserError: the function cannot be found, does not take these arguments, or returns something else.
    """
    function = _function(path)
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if unknown := [] if open_ended else [name for name in kwargs if name not in parameters]:
        allowed = ", ".join(name for name in parameters if name not in sizes) or "none"
        raise UserError(f"custom network {path} has no argument {unknown[0]}; it has: {allowed}")
    passed = {name: size for name, size in sizes.items() if name in parameters}
    if open_ended:
        passed["num_classes"] = sizes["num_classes"]
    if twice := sorted(passed.keys() & kwargs.keys()):
        raise UserError(f"custom network {path}: kwargs.{twice[0]} is not allowed: it follows from the data")
    net = function(**passed, **kwargs)
    if not isinstance(net, nn.Module):
        raise UserError(f"custom network {path} is not possible: it returns {type(net).__name__}, not an nn.Module")
    return net


def _function(path: str) -> Callable[..., Any]:
    module = module_of(path)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the code of the module raises
        raise UserError(f"custom network {path} cannot be imported: {one_line_of(error)}") from error
    for name in path.removeprefix(f"{module}.").split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise UserError(f"custom network {path} cannot be found: {module} has no such function")
    return found


class NamedModules:
    """Reads feature maps, embedding and logits of a network by the names of its modules, with forward hooks.

    The hooks are attached for good, so that `torch.compile` sees them. A deep copy of the network and of this object
    together has hooks of its own.

    Args:
        net: a network whose output is the logits (B, K).
        stages: names of the modules whose outputs are the feature maps.
        classifier: name of the last linear layer, whose input is the embedding.

    Attributes:
        classifier: the last linear layer.

    Raises:
        ValueError: the network has no module of such a name.
    """

    def __init__(self, net: nn.Module, stages: Sequence[str], classifier: str) -> None:
        self.stages = {name: _module(net, name) for name in stages}
        self.classifier_name, self.classifier = classifier, _module(net, classifier)
        self._outputs: dict[str, list[Any]] = {}
        self._embeddings: list[Any] = []
        for name, module in self.stages.items():
            module.register_forward_hook(partial(self._keep_output, name))
        self.classifier.register_forward_pre_hook(self._keep_input)

    def _keep_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._outputs.setdefault(name, []).append(output)

    def _keep_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._embeddings.append(inputs[0] if inputs else None)

    def forward(self, net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Feature maps, embedding and logits, from one forward pass of normalised images (B, C, H, W).

        Raises:
            ValueError: a named module is not used exactly once, or returns something other than a tensor.
        """
        self._outputs.clear()
        self._embeddings.clear()
        logits = net(images)
        stages = [_single(self._outputs.get(name, []), f"module {name}") for name in self.stages]
        embedding = _single(self._embeddings, f"the input of module {self.classifier_name}")
        self._outputs.clear()
        self._embeddings.clear()
        return stages, embedding, _single([logits], "the output")

    def check_unchanged(self, net: nn.Module, images: Tensor) -> None:
        """Refuse a feature map that a later layer changes in place: it would not be the output of its module.

        Raises:
            ValueError: see above.
        """
        copies: dict[str, Tensor] = {}

        def keep_copy(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            copies[name] = output.clone()

        hooks = [module.register_forward_hook(partial(keep_copy, name)) for name, module in self.stages.items()]
        try:
            stages = self.forward(net, images)[0]
        finally:
            for hook in hooks:
                hook.remove()
        for name, stage in zip(self.stages, stages, strict=True):
            if copies[name].shape != stage.shape or not torch.equal(copies[name], stage):
                raise ValueError(f"module {name} is not possible as a stage: a later layer changes its output in place")


def _module(net: nn.Module, name: str) -> nn.Module:
    modules = dict(net.named_modules())
    if not name or name not in modules:
        top = ", ".join(child for child, _ in net.named_children())
        raise ValueError(f"{type(net).__name__} has no module {name!r}; it has: {top}")
    return modules[name]


def _single(tensors: Sequence[Any], what: str) -> Tensor:
    if len(tensors) != 1:
        raise ValueError(f"{what} must be computed once in a forward pass, not {len(tensors)} times")
    if not isinstance(tensors[0], Tensor):
        raise ValueError(f"{what} must be a tensor, not {type(tensors[0]).__name__}")
    return tensors[0]

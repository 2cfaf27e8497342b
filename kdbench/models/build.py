"""Building a network: one of the CIFAR networks, any timm model, or what a function outside kdbench makes."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from kdbench.config.networks import unknown_name
from kdbench.errors import UserError
from kdbench.models import outside
from kdbench.models.features import Network, Origin, probe
from kdbench.models.registry import CONSTRUCTORS

SOURCES = ("cifar", "timm", "custom")


def build(
    name: str,
    *,
    source: str = "cifar",
    kwargs: Mapping[str, Any] | None = None,
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
    resize: int | None = None,
    num_classes: int,
    in_chans: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """A new network, with `shapes` and `origin` set.

    Args:
        name: a name in `kdbench.config.networks.NETWORKS` or in `timm.list_models()`; with `source` "custom", the
            import path of a function or class.
        source: "cifar", "timm" or "custom".
        kwargs: further arguments of the network.
        stages: names of the modules whose outputs are the feature maps; None where the network says so itself.
        classifier: name of the last linear layer; None where the network says so itself.
        resize: height and width, in pixels, to which the network resizes its images; None to take them as they are.
        num_classes: number of logits.
        in_chans: number of image channels.
        image_size: height and width of the images, in pixels.
        mean: mean of each channel of the images in [0, 1].
        std: standard deviation of each channel of the images in [0, 1].

    Raises:
        UserError: the name, the source or an argument is unknown, or the network does not work with such images.
    """
    if len(mean) != in_chans or len(std) != in_chans:
        raise UserError(f"mean={list(mean)}, std={list(std)}: both need one value per channel, in_chans={in_chans}")
    kwargs = dict(kwargs or {})
    _check_known(name, source)
    side = resize or image_size
    try:
        if source == "custom":
            data = {"num_classes": num_classes, "in_chans": in_chans, "image_size": side}
            net = outside.call(name, data, kwargs)
        elif source == "cifar":
            net = CONSTRUCTORS[name](num_classes=num_classes, in_chans=in_chans, **kwargs)
        else:
            net = _from_timm(name, num_classes, in_chans, side, kwargs)
        network = Network(net, mean, std, stages, classifier, resize)
        network.shapes = probe(network, in_chans, image_size)
        if network.shapes.num_classes != num_classes:
            raise ValueError(f"it gives {network.shapes.num_classes} logits, and there are {num_classes} classes")
    except UserError:
        raise
    except Exception as error:  # timm models raise all kinds of errors at sizes they are not designed for
        reason = str(error).partition("\n")[0] or type(error).__name__
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", reason):
            raise UserError(f"{source} network {name} has no argument {unknown[1]}") from error
        images = f"{in_chans}x{side}x{side} images"
        arguments = f" and kwargs={kwargs}" if kwargs else ""
        raise UserError(f"{source} network {name} does not work with {images}{arguments}: {reason}") from error
    named = {"stages": stages, "classifier": classifier}
    options = {"source": source, "name": name, "kwargs": kwargs, **named, "resize": resize}
    sizes = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size, "mean": mean, "std": std}
    network.origin = Origin(options, sizes)
    return network


def _from_timm(name: str, num_classes: int, in_chans: int, image_size: int, kwargs: Mapping[str, Any]) -> nn.Module:
    import timm  # here, because it takes seconds, and the CIFAR networks do not need it

    from kdbench.models import with_timm  # noqa: F401  the CIFAR networks are timm models, too: cifar_<name>

    cfg = timm.get_pretrained_cfg(name)
    img_size = image_size if cfg and cfg.fixed_input_size else None  # for timm, None means "not given"
    create = partial(timm.create_model, name, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
    net = create(**kwargs)
    constructors = [vars(kind)["__init__"] for kind in type(net).__mro__ if "__init__" in vars(kind)]
    named = {parameter for constructor in constructors for parameter in inspect.signature(constructor).parameters}
    for argument in kwargs:
        if argument not in named and _ignores(create, kwargs, argument):
            raise UserError(f"timm network {name} has no argument {argument}")
    return net


def _ignores(create: Callable[..., nn.Module], kwargs: Mapping[str, Any], argument: str) -> bool:
    """Whether a network accepts an argument under any name, and so ignores a misspelt one, as some of timm's do."""
    try:
        create(**{f"unknown_{name}" if name == argument else name: value for name, value in kwargs.items()})
    except TypeError:
        return False
    return True


def _check_known(name: str, source: str) -> None:
    if source not in SOURCES:
        raise UserError(f"source={source} is not allowed: must be one of {', '.join(SOURCES)}")
    if reason := unknown_name(name, source):
        raise UserError(reason)

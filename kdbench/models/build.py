"""From a name to a network: our CIFAR networks and all of timm's."""

from collections.abc import Sequence
from difflib import get_close_matches

import timm

from kdbench.config.networks import NETWORKS
from kdbench.errors import UserError
from kdbench.models import registry  # noqa: F401  registers the CIFAR networks with timm
from kdbench.models.features import Network, Origin, probe

SOURCES = ("cifar", "timm")


def build(
    name: str,
    *,
    source: str = "cifar",
    num_classes: int,
    in_chans: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """A fresh network, probed: its `shapes` are those for the images it is built for.

    Args:
        name: of the catalogue, or of `timm.list_models()`.
        source: "cifar" or "timm".
        num_classes: width of the logits.
        in_chans: channels of the images.
        image_size: height and width of the images, in pixels.
        mean: of the images in [0, 1], by channel.
        std: of the images in [0, 1], by channel.

    Raises:
        UserError: an unknown name or source, or a network that does not take such images.
    """
    if len(mean) != in_chans or len(std) != in_chans:
        raise UserError(f"mean={list(mean)}, std={list(std)}: need one each for {in_chans} channels")
    _check_known(name, source)
    name_in_timm = f"cifar_{name}" if source == "cifar" else name
    cfg = timm.get_pretrained_cfg(name_in_timm)
    img_size = image_size if cfg and cfg.fixed_input_size else None  # timm takes None for "not given"
    try:
        net = timm.create_model(name_in_timm, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
        network = Network(net, mean, std)
        network.shapes = probe(network, in_chans, image_size)
        sizes = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size, "mean": mean, "std": std}
        network.origin = Origin(name, source, sizes)
    except Exception as error:  # whatever a network of timm raises at a size it was not made for
        reason = str(error).partition("\n")[0] or type(error).__name__
        images = f"{in_chans}x{image_size}x{image_size} images"
        raise UserError(f"{source} network {name} does not work with {images}: {reason}") from error
    return network


def _check_known(name: str, source: str) -> None:
    if source not in SOURCES:
        raise UserError(f"source={source}: allowed are {', '.join(SOURCES)}")
    if name in NETWORKS if source == "cifar" else timm.is_model(name):
        return
    names = list(NETWORKS) if source == "cifar" else timm.list_models()
    near = get_close_matches(name.lower(), names)
    message = f"unknown {source} network {name}"
    if near:
        message += f"; nearest: {', '.join(near)}"
    if source == "cifar" and timm.is_model(name):
        message += "; timm has one of this name (source timm)"
    raise UserError(message)

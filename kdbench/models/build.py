"""Building a network by name: one of the CIFAR networks or any timm model."""

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
    """A new network, with `shapes` and `origin` set.

    Args:
        name: a name in `kdbench.config.networks.NETWORKS` or in `timm.list_models()`.
        source: "cifar" or "timm".
        num_classes: number of logits.
        in_chans: number of image channels.
        image_size: height and width of the images, in pixels.
        mean: mean of each channel of the images in [0, 1].
        std: standard deviation of each channel of the images in [0, 1].

    Raises:
        UserError: the name or the source is unknown, or the network does not work with such images.
    """
    if len(mean) != in_chans or len(std) != in_chans:
        raise UserError(f"mean={list(mean)}, std={list(std)}: both need one value per channel, in_chans={in_chans}")
    _check_known(name, source)
    name_in_timm = f"cifar_{name}" if source == "cifar" else name
    cfg = timm.get_pretrained_cfg(name_in_timm)
    img_size = image_size if cfg and cfg.fixed_input_size else None  # for timm, None means "not given"
    try:
        net = timm.create_model(name_in_timm, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
        network = Network(net, mean, std)
        network.shapes = probe(network, in_chans, image_size)
        sizes = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size, "mean": mean, "std": std}
        network.origin = Origin(name, source, sizes)
    except Exception as error:  # timm models raise all kinds of errors at sizes they are not designed for
        reason = str(error).partition("\n")[0] or type(error).__name__
        images = f"{in_chans}x{image_size}x{image_size} images"
        raise UserError(f"{source} network {name} does not work with {images}: {reason}") from error
    return network


def _check_known(name: str, source: str) -> None:
    if source not in SOURCES:
        raise UserError(f"source={source} is not allowed: must be one of {', '.join(SOURCES)}")
    if name in NETWORKS if source == "cifar" else timm.is_model(name):
        return
    names = list(NETWORKS) if source == "cifar" else timm.list_models()
    near = get_close_matches(name.lower(), names)
    message = f"unknown {source} network {name}"
    if near:
        message += f"; nearest: {', '.join(near)}"
    if source == "cifar" and timm.is_model(name):
        message += "; timm has a network of this name (source=timm)"
    raise UserError(message)

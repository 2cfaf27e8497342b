"""The names and origins of the CIFAR networks; does not import torch, so that listing them is instant.

A name can be used as `student=NAME` or `teacher=NAME` on the command line and, with the prefix `cifar_`, as a timm
model: `timm.create_model("cifar_resnet20")`. `import kdbench.models.with_timm` registers them.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from kdbench.config.timm_names import is_timm_model, timm_names
from kdbench.errors import UserError

# The keys of `student` and `teacher` that say what a network is.
NETWORK_KEYS = ("source", "name", "kwargs", "stages", "classifier", "image_size")
_FROM_THE_DATA = ("num_classes", "in_chans", "img_size", "image_size")
_OF_TIMM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")


def network_keys(group: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a `student` or `teacher` group that say what its network is; older records lack some of them."""
    return {key: group[key] for key in NETWORK_KEYS if key in group}


def network_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What the network of a `student` or `teacher` group is, as arguments of `kdbench.models.build.build`.

    There, `image_size` is the size of the data's images, and `resize` that of the images that the network is given.
    """
    options = network_keys(group)
    options["resize"] = options.pop("image_size", None)
    return options


def unknown_name(name: str, source: str) -> str | None:
    """What to say of a name that its source does not have, with the nearest ones; None where there is nothing to say.

    Args:
        name: of the network.
        source: cifar or timm; what else there may be is not known here.
    """
    ours = list(NETWORKS) if source == "cifar" else [f"cifar_{network}" for network in NETWORKS]
    if source not in ("cifar", "timm") or name in ours or (source == "timm" and is_timm_model(name)):
        return None
    near = get_close_matches(name.lower(), ours if source == "cifar" else [*sorted(timm_names()), *ours])
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    elsewhere = "; timm has a network of this name (source=timm)" if source == "cifar" and is_timm_model(name) else ""
    return f"unknown {source} network {name}{nearest}{elsewhere}"


def check_network(group: Mapping[str, Any], key: str) -> None:
    """Refuse what can be refused of a network without building it.

    Args:
        group: the `student` or `teacher` group.
        key: its name, for messages.

    Raises:
        UserError: an unknown name, keys that contradict each other, or arguments that are not the user's to set.
    """
    custom, stages = group["source"] == "custom", group["stages"]
    if reason := unknown_name(group["name"], group["source"]):
        raise UserError(f"{key}.name: {reason}")
    for name, value in group["kwargs"].items():
        argument = f"{key}.kwargs.{name}={value} is not allowed"
        if custom:
            continue
        if name in _FROM_THE_DATA:
            resize = "" if name in ("num_classes", "in_chans") else f"; {key}.image_size={value} resizes the images"
            raise UserError(f"{argument}: it follows from the data{resize}")
        if name in _OF_TIMM:
            raise UserError(f"{argument}: kdbench sets it")
        if value is None:
            raise UserError(f"{argument}: timm ignores arguments that are null")
    if not custom:
        for name in ("stages", "classifier"):
            if group[name] is not None:
                raise UserError(f"{key}.{name}={group[name]} is not allowed: it needs {key}.source=custom")
        return
    if "." not in group["name"].strip("."):
        raise UserError(
            f"{key}.name={group['name']} is not allowed: it must be an import path, package.module.function"
        )
    if stages is not None and not group["classifier"]:
        raise UserError(f"{key}.stages={stages} is not allowed without {key}.classifier, e.g. {key}.classifier=fc")
    if stages is not None and not (
        stages and all(isinstance(stage, str) for stage in stages) and len(set(stages)) == len(stages)
    ):
        raise UserError(f"{key}.stages={stages} is not allowed: it must be names of modules, each once; null = no maps")


class Entry(NamedTuple):
    """The origin of a network.

    Attributes:
        paper: authors and title of the paper.
        year: year of the paper.
        note: the variant that distillation papers use, and the code that defines it.
    """

    paper: str
    year: int
    note: str


_HE = "He et al., Deep Residual Learning for Image Recognition"
_WRN = "Zagoruyko & Komodakis, Wide Residual Networks"
_VGG = "Simonyan & Zisserman, Very Deep Convolutional Networks"


def _resnet(blocks: int, code: str = "as in RepDistiller") -> Entry:
    return Entry(_HE, 2016, f"3 x {blocks} basic blocks, widths 16/32/64, 1x1 conv + BN shortcuts; {code}")


def _resnet_x4(blocks: int) -> Entry:
    return Entry(_HE, 2016, f"3 x {blocks} basic blocks, stem 32, widths 64/128/256; as in RepDistiller")


def _wrn(blocks: int, factor: int, code: str = "as in RepDistiller") -> Entry:
    return Entry(_WRN, 2016, f"3 x {blocks} pre-activation blocks, widths 16/32/64 x {factor}; {code}")


def _vgg(convolutions: int) -> Entry:
    return Entry(_VGG, 2015, f"{convolutions} convolutions with BN, 1 linear layer; like RepDistiller's vgg*_bn")


NETWORKS: dict[str, Entry] = {
    "resnet8": _resnet(1),
    "resnet14": _resnet(2),
    "resnet20": _resnet(3),
    "resnet26": _resnet(4, "as in RepDistiller, which lacks this depth"),
    "resnet32": _resnet(5),
    "resnet44": _resnet(7),
    "resnet56": _resnet(9),
    "resnet110": _resnet(18),
    "resnet8x4": _resnet_x4(1),
    "resnet32x4": _resnet_x4(5),
    "wrn_10_2": _wrn(1, 2, "as in RepDistiller, which lacks this depth"),
    "wrn_16_1": _wrn(2, 1),
    "wrn_16_2": _wrn(2, 2),
    "wrn_28_2": _wrn(4, 2, "as in RepDistiller, which lacks this depth"),
    "wrn_40_1": _wrn(6, 1),
    "wrn_40_2": _wrn(6, 2),
    "vgg8": _vgg(5),
    "vgg11": _vgg(8),
    "vgg13": _vgg(10),
    "vgg16": _vgg(13),
    "vgg19": _vgg(16),
    "mobilenetv2": Entry(
        "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        2018,
        "width 0.5, expansion 6, stem of stride 2, ReLU; like RepDistiller's mobile_half",
    ),
    "shufflenetv1": Entry(
        "Zhang et al., ShuffleNet: An Extremely Efficient CNN for Mobile Devices",
        2018,
        "3 groups, widths 240/480/960, 1x1 stem; like RepDistiller's ShuffleV1",
    ),
    "shufflenetv2": Entry(
        "Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
        2018,
        "width 1, 1x1 stem; like RepDistiller's ShuffleV2",
    ),
    "resnet50": Entry(_HE, 2016, "bottlenecks 3/4/6/3, 3x3 stem without pooling; like RepDistiller's ResNet50"),
    "lenet5": Entry(
        "LeCun et al., Gradient-Based Learning Applied to Document Recognition",
        1998,
        "ReLU and max-pooling; images smaller than 32x32 are padded to that size, as in the paper",
    ),
}

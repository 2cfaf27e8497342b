from typing import Any

import pytest

from kdbench.errors import UserError
from kdbench.models.build import build

IMAGES: dict[str, Any] = {"num_classes": 10, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}


def refused(name, source="cifar", **changes):
    with pytest.raises(UserError) as caught:
        build(name, source=source, **(IMAGES | changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_shapes_are_there():
    shapes = build("resnet20", **IMAGES).shapes
    assert shapes.stages == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert (shapes.embedding, shapes.num_classes) == (64, 10)


def test_one_channel_and_two_classes():
    network = build("lenet5", num_classes=2, in_chans=1, image_size=8, mean=(0.3,), std=(0.4,))
    assert network.shapes.num_classes == 2
    assert network.net.conv1.in_channels == 1


def test_unknown_name_gets_the_nearest():
    message = refused("resnet21")
    assert message.startswith("unknown cifar network resnet21; nearest: resnet")
    assert "resnet20" in message
    assert "wrn_16_2" in refused("WRN-16-2")
    assert refused("zzz") == "unknown cifar network zzz"


def test_name_of_the_other_source():
    assert refused("resnet18").endswith("timm has one of this name (source timm)")
    assert "nearest: " in refused("resnet20x", source="timm")
    assert "mobilenetv3_small_050" in refused("mobilenetv3_small_05", source="timm")


def test_no_path_and_no_hub():
    assert refused("hf-hub:timm/resnet18", source="timm").startswith("unknown timm network hf-hub:timm/resnet18")


def test_unknown_source():
    assert refused("resnet20", source="torchvision") == "source=torchvision: allowed are cifar, timm"


def test_too_small_images():
    message = refused("vgg8", image_size=4)
    assert message == (
        "cifar network vgg8 does not work with 3x4x4 images: VGG takes images of at least 8x8 pixels, not 4x4"
    )
    assert "timm network densenet121 does not work with 3x8x8 images" in refused(
        "densenet121", source="timm", image_size=8
    )


def test_normalisation_of_other_channels():
    assert "need one each for 1 channels" in refused("resnet20", in_chans=1)


def test_image_size_reaches_the_networks_that_want_it():
    network = build("vit_tiny_patch16_224", source="timm", **(IMAGES | {"image_size": 48}))
    assert network.shapes.stages[0] == (192, 3, 3)

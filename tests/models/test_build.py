from typing import Any

import pytest

from kdbench.errors import UserError
from kdbench.models.build import build

IMAGES: dict[str, Any] = {"num_classes": 10, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}


def error_message(name, source="cifar", **changes):
    with pytest.raises(UserError) as caught:
        build(name, source=source, **(IMAGES | changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_network_has_its_shapes():
    shapes = build("resnet20", **IMAGES).shapes
    assert shapes.stages == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert (shapes.embedding, shapes.num_classes) == (64, 10)


def test_one_channel_and_two_classes():
    network = build("lenet5", num_classes=2, in_chans=1, image_size=8, mean=(0.3,), std=(0.4,))
    assert network.shapes.num_classes == 2
    assert network.net.conv1.in_channels == 1


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    message = error_message("resnet21")
    assert message.startswith("unknown cifar network resnet21; nearest: resnet")
    assert "resnet20" in message
    assert "wrn_16_2" in error_message("WRN-16-2")
    assert error_message("zzz") == "unknown cifar network zzz"


def test_a_name_of_the_other_source():
    assert error_message("resnet18").endswith("timm has a network of this name (source=timm)")
    assert "nearest: " in error_message("resnet20x", source="timm")
    assert "mobilenetv3_small_050" in error_message("mobilenetv3_small_05", source="timm")


def test_names_of_the_hugging_face_hub_are_refused():
    message = error_message("hf-hub:timm/resnet18", source="timm")
    assert message.startswith("unknown timm network hf-hub:timm/resnet18")


def test_an_unknown_source():
    message = error_message("resnet20", source="torchvision")
    assert message == "source=torchvision is not allowed: must be one of cifar, timm, custom"


def test_images_that_are_too_small():
    message = error_message("vgg8", image_size=4)
    assert message == (
        "cifar network vgg8 does not work with 3x4x4 images: VGG needs images of at least 8x8 pixels, not 4x4"
    )
    message = error_message("densenet121", source="timm", image_size=8)
    assert "timm network densenet121 does not work with 3x8x8 images" in message


def test_mean_and_std_for_another_number_of_channels():
    assert "both need one value per channel, in_chans=1" in error_message("resnet20", in_chans=1)


def test_the_image_size_is_passed_to_networks_that_require_it():
    network = build("vit_tiny_patch16_224", source="timm", **(IMAGES | {"image_size": 48}))
    assert network.shapes.stages[0] == (192, 3, 3)


class TestArguments:
    def test_of_a_timm_network(self):
        kwargs = {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2}
        network = build("vit_tiny_patch16_224", source="timm", kwargs=kwargs, **IMAGES)
        assert network.shapes.stages == [(24, 8, 8)] * 2
        assert build(**network.origin.options, **network.origin.sizes).shapes == network.shapes

    def test_of_a_cifar_network(self):
        assert build("resnet8", kwargs={"width": 8}, **IMAGES).shapes.stages[1] == (8, 32, 32)

    @pytest.mark.parametrize(
        ("name", "source"),
        [("vit_tiny_patch16_224", "timm"), ("resnet18", "timm"), ("resnet8", "cifar"),
         ("swin_tiny_patch4_window7_224", "timm")],  # timm's Swin accepts any argument
    )  # fmt: skip
    def test_an_unknown_one_is_refused(self, name, source):
        kwargs = {"patch_sise": 4} | ({"depths": [1], "embed_dim": 12, "num_heads": [1]} if "swin" in name else {})
        message = error_message(name, source, kwargs=kwargs)
        assert message == f"{source} network {name} has no argument patch_sise"

    def test_one_of_the_function_that_makes_the_network(self):
        network = build("mobilenetv3_small_050", source="timm", kwargs={"group_size": 8}, **IMAGES)
        assert network.net.blocks[1][0].conv_dw.groups > 1

    def test_an_impossible_value_is_refused(self):
        message = error_message("vit_tiny_patch16_224", "timm", kwargs={"patch_size": 64, "depth": 1})
        assert "kwargs={'patch_size': 64, 'depth': 1}" in message

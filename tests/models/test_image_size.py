"""Networks that resize their images."""

from typing import Any

import pytest
import torch
from torchvision.transforms.functional import resize

from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.models.cost import flops
from kdbench.specs.resolve import spec_of
from tests.helpers.tiny import TINY

SIZES: dict[str, Any] = {"num_classes": 4, "in_chans": 3, "image_size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3}
VIT = {"source": "timm", "kwargs": {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 1}}


def images(side=8):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def features(network, x):
    with torch.no_grad():
        return network.eval()(x)


@pytest.mark.parametrize("side", [5, 16])
def test_images_are_resized_as_torchvision_does_it_before_they_are_normalised(side):
    network = build("resnet8", resize=side, **SIZES)
    expected = (resize(images(), [side, side], antialias=True) - 0.5) / 0.2
    torch.testing.assert_close(network.normalised(images()), expected)


def test_images_of_that_size_and_networks_without_it_take_them_as_they_are():
    network, plain = build("resnet8", resize=8, **SIZES), build("resnet8", **SIZES)
    assert torch.equal(network.normalised(images()), plain.normalised(images()))
    unchanged = build("resnet8", **SIZES | {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    given = images()
    assert unchanged.normalised(given) is given


def test_shapes_and_cost_are_those_of_the_larger_images():
    network, large = build("resnet8", resize=16, **SIZES), build("resnet8", **SIZES | {"image_size": 16})
    assert network.shapes == large.shapes
    assert flops(network, 3, 8) == flops(large, 3, 16) > flops(build("resnet8", **SIZES), 3, 8)


def test_a_transformer_is_built_for_that_size():
    network = build("vit_tiny_patch16_224", resize=16, **VIT, **SIZES)
    assert network.shapes.stages == [(12, 4, 4)]
    assert network.net.pos_embed.shape[1] == 17


def test_a_network_of_ones_own_is_told_that_size():
    own = {"source": "custom", "classifier": "fc"}
    network = build("tests.helpers.odd_networks.Sized", resize=16, **own, **SIZES)
    assert network.net.image_size == 16


def test_another_network_of_the_same_origin_resizes_too():
    network = build("resnet8", resize=16, **SIZES)
    assert build(**network.origin.options, **network.origin.sizes).shapes == network.shapes


def test_logits_are_differentiable_with_respect_to_the_images():
    network, x = build("resnet8", resize=16, **SIZES).eval(), images().requires_grad_()
    network(x).logits.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.abs().sum() > 0


def test_a_size_that_the_network_cannot_take_is_refused():
    with pytest.raises(UserError, match="vgg8 does not work with 3x4x4 images"):
        build("vgg8", resize=4, **SIZES)


def test_the_students_and_the_teachers_are_options_of_their_runs():
    spec = spec_of([*TINY, "student.image_size=16", "teacher.image_size=12"])
    alone = spec_of([*TINY, "method=ce", "student=resnet14", "student.image_size=12"])
    assert spec.dependencies["teacher"].id == alone.id
    assert len({spec.id, spec_of(TINY).id, spec_of([*TINY, "student.image_size=16"]).id}) == 3
    of_itself = spec_of([*TINY, "teacher=self", "student.image_size=16"])
    assert of_itself.dependencies["teacher"].config["student"]["image_size"] == 16


@pytest.mark.parametrize("value", [0, -8, 16.5])
def test_only_positive_integers(value):
    with pytest.raises(UserError, match=r"teacher\.image_size=.* must be int > 0 or null"):
        spec_of([*TINY, f"teacher.image_size={value}"])


@pytest.mark.parametrize("name", ["img_size", "image_size"])
def test_the_argument_of_timm_is_refused_with_the_key_to_use(name):
    expected = rf"student\.kwargs\.{name}=16 is not allowed: .*student\.image_size=16 resizes the images"
    with pytest.raises(UserError, match=expected):
        spec_of([*TINY, f"student.kwargs={{{name}:16}}"])


def test_runs_with_resized_images(tiny):
    record = tiny("method=bss", "student.image_size=12", "teacher.image_size=10", "recipe.epochs=1")
    plain = tiny("method=bss", "recipe.epochs=1")
    assert record.finished["cost"]["flops"] > plain.finished["cost"]["flops"]
    assert record.finished["sizes"]["image_size"] == 8
    assert record.finished["teacher"]["id"] != plain.finished["teacher"]["id"]

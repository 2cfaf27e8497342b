"""Weights of other classes, image sizes and patch sizes: what is kept, what is resampled, what is refused."""

from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from kdbench.errors import UserError
from kdbench.models import fitting
from kdbench.models.build import build
from kdbench.records import weights

SIZES: dict[str, Any] = {"in_chans": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
NAMED = {"source": "custom", "stages": ["stage1"], "classifier": "fc"}


def network(name="resnet8", classes=4, image_size=8, **options):
    return build(name, num_classes=classes, image_size=image_size, **options, **SIZES)


def vit(image_size=8, patch_size=4, name="vit_tiny_patch16_224", **kwargs):
    kwargs = {"patch_size": patch_size, "depth": 1, "embed_dim": 12, "num_heads": 1, **kwargs}
    return network(name, image_size=image_size, source="timm", kwargs=kwargs)


def randomised(network):
    """With position embeddings and norms that differ, which they do not at first."""
    for parameter in network.net.parameters():
        nn.init.normal_(parameter)
    return network


def features(network, x):
    with torch.no_grad():
        return network.eval()(x)


class TestClasses:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("resnet8", {}),
            ("wrn_10_2", {}),
            ("tests.helpers.networks.Plain", NAMED),
            ("test_convnext", {"source": "timm", "image_size": 32}),
        ],
    )
    def test_the_logits_are_those_of_the_file_in_the_order_given(self, name, options):
        old, new = network(name, 7, **options), network(name, 3, **options)
        state = fitting.of_classes(new, old.export_state(), [5, 0, 6], "k=f")
        weights.load_into(new.net, state, "k=f")
        images = torch.rand(2, 3, options.get("image_size", 8), options.get("image_size", 8))
        whole, part = features(old, images), features(new, images)
        torch.testing.assert_close(part.logits, whole.logits[:, [5, 0, 6]])
        assert torch.equal(part.embedding, whole.embedding)
        assert new.shapes.num_classes == 3

    def test_a_file_of_as_many_classes_in_another_order(self):
        old, new = network(), network()
        state = fitting.of_classes(new, old.export_state(), [3, 2, 1, 0], "k=f")
        assert torch.equal(state["fc.weight"], old.net.fc.weight.flip(0))

    @pytest.mark.parametrize(("name", "options"), [("resnet8", {}), ("tests.helpers.networks.Plain", NAMED)])
    def test_without_a_choice_other_classes_are_refused(self, name, options):
        state = network(name, 7, **options).export_state()
        expected = r"^k=f has 7 classes, but the data set has 4; teacher\.classes=\[\.\.\.\] says which"
        with pytest.raises(UserError, match=expected):
            fitting.of_classes(network(name, **options), state, None, "k=f")
        with pytest.raises(UserError, match=r"^k=f has 3 classes, but the data set has 4$"):
            fitting.of_classes(network(name, **options), network(name, 3, **options).export_state(), None, "k=f")

    def test_an_output_that_the_file_does_not_have_is_refused(self):
        state = network(classes=7).export_state()
        expected = r"teacher\.classes=\[0, 1, 2, 7\] is not allowed: k=f has 7 classes, 0 to 6"
        with pytest.raises(UserError, match=expected):
            fitting.of_classes(network(), state, [0, 1, 2, 7], "k=f")

    def test_a_classifier_that_is_not_linear_is_refused(self):
        new = network("tests.helpers.odd_networks.Sequenced", source="custom", classifier="fc")
        with pytest.raises(UserError, match=r"teacher\.classes=.* the classifier fc is Sequential, not Linear"):
            fitting.of_classes(new, new.export_state(), [3, 2, 1, 0], "k=f")

    def test_weights_of_another_network_are_left_to_be_refused(self):
        state = network("resnet14", 7).export_state()
        assert fitting.of_classes(network(), state, [0, 1, 2, 3], "k=f").keys() == state.keys()


class TestTransformers:
    def test_another_image_size(self):
        old, new = randomised(vit(16)), vit(8)
        state, notes = fitting.resampled(new, old.export_state(), "k=f")
        assert notes == ["pos_embed resampled from 1x17x12 to 1x5x12"]
        expected = resample_abs_pos_embed(old.net.pos_embed.detach(), [2, 2], num_prefix_tokens=1)
        torch.testing.assert_close(state["pos_embed"], expected)
        weights.load_into(new.net, state, "k=f")

    def test_another_patch_size(self):
        old, new = randomised(vit(8, 4)), vit(8, 2)
        state, notes = fitting.resampled(new, old.export_state(), "k=f")
        assert notes == [
            "pos_embed resampled from 1x5x12 to 1x17x12",
            "patch_embed.proj.weight resampled from 12x3x4x4 to 12x3x2x2",
        ]
        expected = resample_patch_embed(old.net.patch_embed.proj.weight.detach(), [2, 2])
        torch.testing.assert_close(state["patch_embed.proj.weight"], expected)
        same = set(state) - {"pos_embed", "patch_embed.proj.weight"}
        assert all(torch.equal(state[key], old.net.state_dict()[key]) for key in same)
        weights.load_into(new.net, state, "k=f")

    def test_another_window(self):
        options = {"source": "timm", "kwargs": {"depths": [1], "embed_dim": 12, "num_heads": [1]}}
        name = "swin_tiny_patch4_window7_224"
        old, new = network(name, image_size=16, **options), network(name, image_size=8, **options)
        state, notes = fitting.resampled(new, old.export_state(), "k=f")
        assert [note.partition(" ")[0] for note in notes] == ["layers.0.blocks.0.attn.relative_position_bias_table"]
        weights.load_into(new.net, state, "k=f")

    def test_weights_that_fit_are_kept(self):
        old, new = randomised(vit()), vit()
        state, notes = fitting.resampled(new, old.export_state(), "k=f")
        assert notes == []
        assert all(torch.equal(state[key], value) for key, value in old.export_state().items())

    @pytest.mark.parametrize("kwargs", [{"embed_dim": 24}, {"depth": 2}, {"class_token": False, "global_pool": "avg"}])
    def test_weights_of_another_transformer_are_refused(self, kwargs):
        state = vit(16, 8, **kwargs).export_state()
        new = vit()
        with pytest.raises(UserError, match="k=f belongs to another network") as caught:
            weights.load_into(new.net, fitting.resampled(new, state, "k=f")[0], "k=f")
        assert "\n" not in str(caught.value)

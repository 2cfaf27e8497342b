"""Starting from weights: what is loaded, what stays new, what is resized, what is refused."""

import logging
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.models.initial import start_from
from kdbench.records import weights

SIZES: dict[str, Any] = {"in_chans": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
SMALL = {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 1}


def network(name="resnet8", classes=4, image_size=8, **options):
    return build(name, num_classes=classes, image_size=image_size, **options, **SIZES)


def vit(image_size=8, **options):
    return network("vit_tiny_patch16_224", image_size=image_size, source="timm", kwargs=SMALL, **options)


@pytest.fixture
def started(tmp_path, caplog):
    """Start a network from the weights of another, or from a state dict."""

    def start(new, source, pickled=False):
        state = source if isinstance(source, dict) else source.export_state()
        path = tmp_path / "weights"
        if pickled:
            torch.save(state, path)
        else:
            weights.save(path, state, {})
        caplog.clear()
        with caplog.at_level(logging.INFO, "kdbench"):
            start_from(new, path, "student.init")
        return caplog.text

    return start


@pytest.mark.parametrize("pickled", [False, True])
def test_all_weights_are_loaded(started, pickled):
    old, new = network(), network()
    assert started(new, old, pickled) == ""
    state = new.export_state()
    assert all(torch.equal(value, state[key]) for key, value in old.export_state().items())


@pytest.mark.parametrize("with_classifier", [True, False])
def test_a_classifier_of_other_classes_is_new(started, with_classifier):
    old, new = network(classes=7), network()
    fresh = new.net.fc.weight.clone()
    state = old.export_state()
    if not with_classifier:
        del state["fc.weight"], state["fc.bias"]
    assert "the classifier for 4 classes is new" in started(new, state)
    assert torch.equal(new.net.fc.weight, fresh)
    assert torch.equal(new.net.conv1.weight, old.net.conv1.weight)


def test_position_embeddings_are_resampled(started):
    old, new = vit(16), vit(8)
    assert "pos_embed resampled from 1x17x12 to 1x5x12\n" in started(new, old)
    expected = resample_abs_pos_embed(old.net.pos_embed.detach(), [2, 2], num_prefix_tokens=1)
    torch.testing.assert_close(new.net.pos_embed.detach(), expected)
    assert torch.equal(new.net.cls_token, old.net.cls_token)


def test_a_network_read_by_names(started):
    named = {"source": "custom", "stages": ["stage1"], "classifier": "fc"}
    old, new = (network("tests.helpers.networks.Plain", classes, **named) for classes in (3, 4))
    assert "is new" in started(new, old)
    assert torch.equal(new.net.stage1[0].weight, old.net.stage1[0].weight)


def test_weights_of_another_network_are_refused(started):
    state = network().export_state()
    with pytest.raises(UserError, match=r"student\.init=.* another network: conv1\.weight is \[16, 1, 3, 3\]"):
        started(network(), {**state, "conv1.weight": state["conv1.weight"][:, :1]})
    with pytest.raises(UserError, match=r"student\.init=.* belongs to another network: it"):
        started(network(), network("resnet14"))


def test_half_a_classifier_is_refused(started):
    state = network().export_state()
    del state["fc.bias"]
    with pytest.raises(UserError, match=r"lacks fc\.bias"):
        started(network(), state)

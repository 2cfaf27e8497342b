from typing import Any

import pytest
import timm
import torch
from torch import nn

from kdbench.models import registry  # noqa: F401  registers the networks
from kdbench.models.build import build
from kdbench.models.features import Features, Network, Shapes, evaluating, probe
from kdbench.models.resnet import ResNet

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SIZES: dict[str, Any] = {"num_classes": 10, "in_chans": 3, "mean": MEAN, "std": STD}

# (name, image size) -> (channels, pixels) of the feature maps, and the size of the embedding
TIMM = {
    ("resnet18", 32): ([(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)], 512),
    ("mobilenetv3_small_050", 32): ([(16, 16), (8, 8), (16, 4), (24, 2), (288, 1)], 1024),
    ("convnext_atto", 32): ([(40, 8), (80, 4), (160, 2), (320, 1)], 320),
    ("vit_tiny_patch16_224", 32): ([(192, 2)] * 4, 192),
    ("vit_tiny_patch16_224", 64): ([(192, 4)] * 4, 192),
    ("efficientnet_b0", 32): ([(16, 16), (24, 8), (40, 4), (112, 2), (320, 1)], 1280),
    ("swin_tiny_patch4_window7_224", 32): ([(96, 8), (192, 4), (384, 2), (768, 1)], 768),
    ("densenet121", 32): ([(64, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)], 1024),
    ("regnetx_002", 32): ([(32, 16), (24, 8), (56, 4), (152, 2), (368, 1)], 368),
    ("gmlp_ti16_224", 32): ([(128, 2)] * 4, 128),
}


def small(name="cifar_resnet8", mean=MEAN, std=STD, **kwargs):
    return Network(timm.create_model(name, num_classes=10, **kwargs), mean, std)


@pytest.mark.parametrize(("name", "size"), TIMM)
def test_timm_networks(name, size):
    network = build(name, source="timm", image_size=size, **SIZES).eval()
    maps, embedding = TIMM[name, size]
    assert network.shapes == Shapes([(c, s, s) for c, s in maps], embedding, 10)
    images = torch.rand(2, 3, size, size)
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        features = network(images)
        torch.testing.assert_close(features.logits, network.net(normalised), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(network.net.get_classifier()(features.embedding), features.logits)
        for tap, index in zip(features.stages, network.taps, strict=True):
            [expected] = network.net.forward_intermediates(normalised, indices=[index], intermediates_only=True)
            torch.testing.assert_close(tap, expected, rtol=1e-3, atol=1e-3)


def test_feature_maps_of_a_vit_are_those_of_evenly_spaced_blocks():
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32)  # 12 blocks
        mixer = timm.create_model("gmlp_ti16_224", img_size=32)  # 30 blocks
    assert Network(vit, MEAN, STD).taps == [2, 5, 8, 11]
    assert Network(mixer, MEAN, STD).taps == [7, 14, 21, 29]


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_2", "vgg8", "mobilenetv2", "shufflenetv1", "lenet5"])
def test_features_are_those_of_the_network(name):
    network = build(name, image_size=32, **SIZES).eval()
    images = torch.rand(3, 3, 32, 32)
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        features = network(images)
        final, maps = network.net.forward_intermediates(normalised)
        torch.testing.assert_close(features.logits, network.net(normalised))
        torch.testing.assert_close(features.embedding, network.net.forward_head(final, pre_logits=True))
    for tap, expected in zip(features.stages, maps, strict=True):
        torch.testing.assert_close(tap, expected)
    assert network.shapes.stages == [tuple(m.shape[1:]) for m in maps]


def test_embedding_is_the_mean_of_the_last_map_of_a_resnet():
    features = small()(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(features.embedding, features.stages[-1].mean((2, 3)))


def test_all_features_come_from_one_forward_pass():
    network = small()
    calls = []
    for module in (network.net.conv1, network.net.layer3, network.net.fc):
        module.register_forward_hook(lambda *_: calls.append(1))
    network(torch.rand(2, 3, 32, 32))
    assert len(calls) == 3


def test_mean_0_and_std_1_leave_the_images_unchanged():
    network = small(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert not network.normalises
    conv_inputs = []
    network.net.conv1.register_forward_pre_hook(lambda _, inputs: conv_inputs.append(inputs[0]))
    images = torch.rand(2, 3, 32, 32)
    network(images)
    assert conv_inputs[0] is images
    for mean, std in (((0.0, 0.1, 0.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0, 1.0, 0.5))):
        assert small(mean=mean, std=std).normalises


def test_the_state_dict_does_not_contain_the_normalisation():
    network = small()
    assert not {"scale", "shift"} & network.state_dict().keys()


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.1, 0.2)), ((0.5,), (0.0,)), ((0.5,), (float("nan"),))])
def test_invalid_normalisation(mean, std):
    with pytest.raises(ValueError, match="each channel needs a mean and a std > 0"):
        small(mean=mean, std=std)


def test_a_new_network_can_load_an_exported_state():
    network = small().to(memory_format=torch.channels_last).eval()
    state = network.export_state()
    assert all(value.is_contiguous() for value in state.values())
    loaded = timm.create_model("cifar_resnet8", num_classes=10).eval()
    loaded.load_state_dict(state)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = network(images).logits
        torch.testing.assert_close(loaded(network.normalised(images)), expected)


def test_float_converts_only_what_is_not_float32():
    features = Features([torch.ones(1, 1, 1, 1).bfloat16()], torch.ones(1, 2).bfloat16(), torch.ones(1, 2))
    cast = features.float()
    assert [t.dtype for t in (*cast.stages, cast.embedding, cast.logits)] == [torch.float32] * 3
    assert cast.logits is features.logits


def test_autocast_and_channels_last():
    network = small().to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(images)
    assert features.logits.dtype == torch.bfloat16
    assert all(tap.is_contiguous(memory_format=torch.channels_last) for tap in features.stages)
    features.float().logits.sum().backward()
    assert network.net.conv1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2"])
def test_shuffles_keep_channels_last(name):
    network = small(f"cifar_{name}").to(memory_format=torch.channels_last)
    features = network(torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert all(tap.is_contiguous(memory_format=torch.channels_last) for tap in features.stages)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_mobilenetv2", "vit_tiny_patch16_224"])
def test_on_the_meta_device(name):
    options = {} if name.startswith("cifar") else {"img_size": 32}
    real = small(name, **options)
    with torch.device("meta"):
        network = small(name, **options)
        assert network(torch.empty(1, 3, 32, 32)).logits.shape == (1, 10)
    assert probe(network, 3, 32) == probe(real, 3, 32)


def test_a_training_step_with_one_image():
    network = small().train()
    network(torch.rand(1, 3, 32, 32)).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("normalised", [True, False])
def test_compiles_as_one_graph(normalised):
    network = small(mean=MEAN if normalised else (0.0,) * 3, std=STD if normalised else (1.0,) * 3).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")(images)
        eager = network(images)
    assert len(compiled.stages) == 4
    for a, b in zip((*compiled.stages, *compiled[1:]), (*eager.stages, *eager[1:]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_shufflenetv2", "cifar_vgg8", "vit_tiny_patch16_224"])
def test_inductor(name):
    network = small(name, **({} if name.startswith("cifar") else {"img_size": 32}))
    images = torch.rand(4, 3, 32, 32)
    eager = network(images).logits
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(images).logits, eager, rtol=1e-3, atol=1e-3)


class TestProbe:
    def test_shapes(self):
        shapes = probe(small(), 3, 24)
        assert shapes == Shapes([(16, 24, 24), (16, 24, 24), (32, 12, 12), (64, 6, 6)], 64, 10)

    @pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenetv3_small_050"])
    def test_probing_changes_nothing(self, name):
        network = small(name, drop_rate=0.5) if name.startswith("mobile") else small(name)
        network.train()
        next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
        modes = [m.training for m in network.modules()]
        state = {key: value.clone() for key, value in network.state_dict().items()}
        rng_state = torch.get_rng_state()
        probe(network, 3, 32)
        assert torch.equal(torch.get_rng_state(), rng_state)
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[key]), key
        assert [m.training for m in network.modules()] == modes
        assert all(p.grad is None and p.requires_grad for p in network.parameters())

    def test_modes_are_restored_after_an_error(self):
        network = small("cifar_vgg8").train()
        with pytest.raises(ValueError, match="8x8"):
            probe(network, 3, 4)
        assert all(m.training for m in network.modules())

    def test_a_network_whose_output_is_not_the_classifiers(self):
        class Scaled(ResNet):
            def forward(self, x):
                return 2 * super().forward(x)

        with pytest.raises(ValueError, match="Scaled: get_classifier"):
            probe(Network(Scaled(8), MEAN, STD), 3, 32)

    def test_feature_maps_that_are_not_four_dimensional(self):
        class Flat(ResNet):
            def forward_intermediates(self, x, *args, **kwargs):
                final, maps = super().forward_intermediates(x, *args, **kwargs)
                return final, [m.flatten(1) for m in maps]

        with pytest.raises(ValueError, match=r"Flat: feature maps of shapes .* are not"):
            probe(Network(Flat(8), MEAN, STD), 3, 32)


def test_a_network_with_several_classifiers_is_refused():
    net = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    with pytest.raises(ValueError, match="VisionTransformerDistilled: its classifier"):
        Network(net, MEAN, STD)


class Plain(nn.Module):
    """A network without `forward_intermediates`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 10)

    def forward_features(self, x):
        return self.conv(x)

    def forward_head(self, x, pre_logits=False):
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def get_classifier(self):
        return self.fc


def test_a_network_without_intermediates_returns_no_feature_maps():
    network = Network(Plain(), MEAN, STD)
    assert probe(network, 3, 8) == Shapes([], 6, 10)
    features = network(torch.rand(2, 3, 8, 8))
    assert features.stages == []
    torch.testing.assert_close(features.logits, network.net.fc(features.embedding))


def test_evaluating_restores_mode_and_gradients():
    network = small()
    with evaluating(network):
        assert not torch.is_grad_enabled()
        assert not network.net.bn1.training
    assert torch.is_grad_enabled()
    assert network.net.bn1.training

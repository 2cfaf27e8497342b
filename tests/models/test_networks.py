"""The networks are those of the literature: same parameters, operations, feature maps and outputs."""

import pytest
import timm
import torch

from kdbench.config.networks import NETWORKS
from kdbench.models import registry  # noqa: F401  registers the networks
from kdbench.models.cost import flops, parameters

FAMILIES = [
    "resnet8",
    "resnet8x4",
    "wrn_10_2",
    "vgg8",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "resnet50",
    "lenet5",
]

# millions of parameters and MACs at 32x32 pixels and 100 classes, as published for RepDistiller's networks
PUBLISHED = {
    "resnet8": (".084", "12.5"),
    "resnet20": (".278", "40.8"),
    "resnet32": (".473", "69.1"),
    "resnet56": (".862", "125.8"),
    "resnet110": ("1.737", "253"),
    "resnet8x4": ("1.234", "177"),
    "resnet32x4": ("7.434", "1083"),
    "wrn_16_1": (".181", "26.7"),
    "wrn_16_2": (".703", "101"),
    "wrn_40_1": (".570", "83"),
    "wrn_40_2": ("2.255", "328"),
    "vgg8": ("3.965", "96"),
    "vgg13": ("9.462", "285"),
    "resnet50": ("23.705", "1298"),
    "mobilenetv2": (".813", "6.5"),
    "shufflenetv1": (".949", "38.7"),
    "shufflenetv2": ("1.356", "44.5"),
}

# exact numbers of parameters and MACs of all networks, as regression constants
EXACT = {
    "resnet8": (83892, 12507392),
    "resnet14": (181108, 26663168),
    "resnet20": (278324, 40818944),
    "resnet26": (375540, 54974720),
    "resnet32": (472756, 69130496),
    "resnet44": (667188, 97442048),
    "resnet56": (861620, 125753600),
    "resnet110": (1736564, 253155584),
    "resnet8x4": (1233540, 177071104),
    "resnet32x4": (7433860, 1083040768),
    "wrn_10_2": (315316, 44495360),
    "wrn_16_1": (180916, 26663168),
    "wrn_16_2": (703284, 101118464),
    "wrn_28_2": (1479220, 214364672),
    "wrn_40_1": (569780, 83286272),
    "wrn_40_2": (2255156, 327610880),
    "vgg8": (3965028, 96192512),
    "vgg11": (9277284, 209438720),
    "vgg13": (9462180, 284936192),
    "vgg16": (14774436, 398182400),
    "vgg19": (20086692, 511428608),
    "mobilenetv2": (812836, 6523648),
    "shufflenetv1": (949258, 38691456),
    "shufflenetv2": (1355528, 44504448),
    "resnet50": (23705252, 1298014208),
    "lenet5": (69656, 659280),
}

# (channels, pixels) of the feature maps of stem and stages for 32x32 images
MAPS = {
    "resnet": [(16, 32), (16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(32, 32), (64, 32), (128, 16), (256, 8)],
    "resnet32x4": [(32, 32), (64, 32), (128, 16), (256, 8)],
    "resnet50": [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
    "wrn_16_1": [(16, 32), (16, 32), (32, 16), (64, 8)],
    "wrn_40_1": [(16, 32), (16, 32), (32, 16), (64, 8)],
    "wrn": [(16, 32), (32, 32), (64, 16), (128, 8)],
    "vgg": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)],
    "shufflenetv1": [(24, 32), (240, 16), (480, 8), (960, 4)],
    "shufflenetv2": [(24, 32), (116, 16), (232, 8), (464, 4)],
    "lenet5": [(6, 28), (16, 10)],
}

# mean magnitude of each feature map and of the embedding, and two logits, with the weights of `filled`; computed with
# RepDistiller's models at commit b84f547c
REFERENCE = [
    ("resnet8", 32, [0.138516, 0.224569, 0.221046, 0.326979, 0.326979], [0.0954963, 0.156228]),
    ("resnet20", 32, [0.138516, 0.660378, 0.401978, 0.665576, 0.665576], [-0.0732968, 0.0287459]),
    ("resnet8x4", 32, [0.138264, 0.090716, 0.0791001, 0.0613631, 0.0613631], [-0.0748129, 0.158879]),
    ("wrn_16_1", 32, [0.282286, 0.600458, 0.661685, 0.213191, 0.104453], [-0.18241, -0.0203109]),
    ("wrn_16_2", 32, [0.282286, 0.323466, 1.25093, 0.460587, 0.222797], [0.939219, 0.824029]),
    ("vgg8", 32, [0.145823, 0.0968207, 0.102722, 0.0678095, 0.0522413, 0.0522413], [0.0146183, -0.0361652]),
    ("vgg8", 64, [0.950405, 0.488397, 0.110939, 0.0646322, 0.0527492, 0.0527492], [0.014172, -0.0355074]),
    ("vgg13", 32, [0.0638176, 0.0753541, 0.0464898, 0.0514507, 0.0510758, 0.0510758], [-0.00261425, 0.184589]),
    ("mobilenetv2", 32, [0.138744, 0.132737, 0.210349, 0.202378, 0.0854717, 0.130546], [-0.000551523, 0.0426972]),
    ("shufflenetv1", 32, [0.647345, 1.10863, 1.1535, 0.68449, 0.68449], [0.0634688, -0.571419]),
    ("shufflenetv2", 32, [0.647345, 0.231791, 0.126022, 0.0850504, 0.0791002], [0.012031, -0.00872309]),
    ("resnet50", 32, [0.138787, 0.178077, 0.248699, 0.887107, 0.127564, 0.127564], [0.0768246, 0.0247669]),
]


def make(name, **kwargs):
    return timm.create_model(f"cifar_{name}", **kwargs)


def wave(*shape):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.11).view(shape)


def filled(net):
    """Set weights that are the same in any implementation with the same order of parameters."""
    for i, (key, value) in enumerate(net.state_dict().items()):
        if not value.is_floating_point():
            continue
        values = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * (0.37 + 0.01 * i)).view(value.shape)
        if value.ndim > 1:
            value.copy_(values * (4 / value[0].numel()) ** 0.5)
        elif key.endswith(("weight", "running_var")):
            value.copy_(1 + 0.2 * values)
        else:
            value.copy_(0.1 * values)
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_operations_and_maps(name):
    with torch.device("meta"):
        net = make(name)
        final, maps = net.forward_intermediates(torch.empty(2, 3, 32, 32))
    count, macs = parameters(net), flops(net, 3, 32) // 2
    assert (count, macs) == EXACT[name]
    if name in PUBLISHED:
        for value, published in zip((count, macs), PUBLISHED[name], strict=True):
            decimals = len(published.partition(".")[2])
            assert round(value / 1e6, decimals) == float(published)

    key = name if name in MAPS else name.rstrip("0123456789").partition("_")[0]
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in MAPS[key]]
    assert [info["num_chs"] for info in net.feature_info] == [c for c, _ in MAPS[key]]
    if name != "lenet5":  # its convolutions have no padding
        assert [32 // info["reduction"] for info in net.feature_info] == [s for _, s in MAPS[key]]
    assert net.forward_head(final, pre_logits=True).shape == (2, net.num_features)
    assert net.forward_head(final).shape == (2, net.num_classes) == (2, 100)


@pytest.mark.parametrize(("name", "size", "magnitudes", "logits"), REFERENCE)
def test_outputs_are_those_of_repdistiller(name, size, magnitudes, logits):
    net = filled(make(name, num_classes=10).double()).eval()
    with torch.no_grad():
        final, maps = net.forward_intermediates(wave(2, 3, size, size))
        embedding = net.forward_head(final, pre_logits=True)
        output = net.forward_head(final)
    assert [m.abs().mean().item() for m in (*maps, embedding)] == pytest.approx(magnitudes, rel=1e-5)
    assert output[1, :2].tolist() == pytest.approx(logits, rel=1e-5)


def test_lenet5_has_61706_parameters_for_one_channel_and_ten_classes():
    assert parameters(make("lenet5", num_classes=10, in_chans=1)) == 61706


@pytest.mark.parametrize("name", FAMILIES)
def test_all_ways_of_calling_the_network_agree(name):
    net = make(name, num_classes=7).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = net(x)
        final, _ = net.forward_intermediates(x)
        torch.testing.assert_close(net.forward_features(x), final)
        torch.testing.assert_close(net.forward_head(final), logits)
        torch.testing.assert_close(net.get_classifier()(net.forward_head(final, pre_logits=True)), logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_modifies_an_earlier_feature_map(name):
    net = make(name).train()
    x = torch.rand(4, 3, 32, 32)
    before = x.clone()
    final, maps = net.forward_intermediates(x)
    versions = [m._version for m in maps]
    net.forward_head(final).square().mean().backward()
    assert torch.equal(x, before)
    assert [m._version for m in maps] == versions
    for i, tap in enumerate(maps):
        [single] = net.forward_intermediates(x, indices=[i], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(single, tap)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter_and_every_feature_map(name):
    net = filled(make(name, num_classes=5)).eval()  # with batch statistics, biases before BN get no gradient
    final, maps = net.forward_intermediates(torch.rand(4, 3, 32, 32))
    for tap in maps:
        tap.retain_grad()
    net.forward_head(final).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    assert all(tap.grad.abs().max() > 0 for tap in maps)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_image_sizes_and_channels(name, size):
    channels = 1 if size in (8, 28) else 3
    with torch.device("meta"):
        net = make(name, num_classes=2, in_chans=channels).eval()
        final, maps = net.forward_intermediates(torch.empty(1, channels, size, size))
        assert net.forward_head(final).shape == (1, 2)
    exceptions = {"lenet5": {8: 10, 28: 10, 32: 10, 64: 26}, "vgg8": {8: 1, 28: 3, 32: 4, 64: 4}}
    ceiling = -(-size // net.feature_info[-1]["reduction"])  # strided convolutions round up
    assert maps[-1].shape[-1] == exceptions.get(name, {}).get(size, ceiling)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_single_small_image_are_finite(name):
    net = make(name, num_classes=2, in_chans=1).eval()
    with torch.no_grad():
        assert torch.isfinite(net(torch.rand(1, 1, 8, 8))).all()


def test_vgg_states_its_minimum_image_size():
    net = make("vgg8")
    with pytest.raises(ValueError, match=r"VGG needs images of at least 8x8 pixels, not 7x12"):
        net(torch.rand(2, 3, 7, 12))


def test_lenet_centres_small_images():
    net = make("lenet5", in_chans=1).eval()
    image = torch.rand(1, 1, 28, 28)
    padded = torch.zeros(1, 1, 32, 32)
    padded[..., 2:30, 2:30] = image
    with torch.no_grad():
        torch.testing.assert_close(net(image), net(padded))


def test_resnet_feature_maps_are_rectified_and_those_of_wrn_are_not():
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for tap in make("resnet8").forward_intermediates(x, intermediates_only=True):
            assert tap.min() == 0
        for tap in make("wrn_10_2").forward_intermediates(x, intermediates_only=True):
            assert tap.min() < 0


def test_indices_as_in_timm():
    net = make("resnet8").eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        _, maps = net.forward_intermediates(x)
        for indices, expected in ((None, [0, 1, 2, 3]), (2, [2, 3]), ([0, -1], [0, 3]), ((1,), [1])):
            selected = net.forward_intermediates(x, indices=indices, intermediates_only=True)
            assert len(selected) == len(expected)
            for feature_map, index in zip(selected, expected, strict=True):
                torch.testing.assert_close(feature_map, maps[index])
    for invalid in ([4], 5, [-5]):
        with pytest.raises(ValueError, match="out of range, the network has 4 feature maps"):
            net.forward_intermediates(x, indices=invalid)
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        net.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", FAMILIES)
def test_reset_classifier(name):
    net = make(name, num_classes=10).eval()
    old = net.get_classifier()
    net.reset_classifier(3)
    assert net.get_classifier() is not old
    assert net.num_classes == 3
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert net(x).shape == (1, 3)
        net.reset_classifier(0)
        torch.testing.assert_close(net(x), net.forward_head(net.forward_features(x), pre_logits=True))


def test_initialisation():
    conv = make("resnet8x4").layer3[0].conv1.weight  # fan-out 9 * 256
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    depthwise = make("mobilenetv2").stage4[3].conv[3].weight  # 480 channels
    assert depthwise.std().item() == pytest.approx((2 / (9 * 480)) ** 0.5, rel=0.05)
    for name in ("vgg8", "mobilenetv2"):
        head = make(name).get_classifier()
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not head.bias.any()
    vgg = make("vgg8")
    assert not any(p.any() for key, p in vgg.named_parameters() if key.endswith("bias"))
    assert not make("wrn_10_2").get_classifier().bias.any()
    assert make("resnet8").get_classifier().bias.any()
    shuffle = make("shufflenetv2").conv2.weight  # PyTorch: uniform within 1 / sqrt(464)
    assert shuffle.abs().max().item() == pytest.approx(464**-0.5, rel=1e-3)


def test_state_dict_keys_are_those_of_published_teachers():
    keys = {
        "resnet56": {"conv1.weight", "layer2.0.downsample.1.running_mean", "layer3.8.bn2.bias", "fc.weight"},
        "wrn_40_2": {"block1.layer.0.convShortcut.weight", "block3.layer.5.bn2.weight", "bn1.weight", "fc.bias"},
        "vgg13": {"block0.3.weight", "block4.4.running_var", "classifier.weight"},
        "resnet50": {"layer1.0.shortcut.0.weight", "layer4.2.conv3.weight", "linear.bias"},
    }
    for name, expected in keys.items():
        with torch.device("meta"):
            assert expected <= make(name).state_dict().keys()


def test_timm_networks_of_the_same_name_are_kept():
    assert set(timm.list_models("cifar_*")) == {f"cifar_{name}" for name in NETWORKS}
    assert type(timm.create_model("resnet26")).__module__.startswith("timm.")


def test_pretrained_weights_do_not_exist():
    with pytest.raises(ValueError, match="cifar_resnet20 has no pretrained weights"):
        make("resnet20", pretrained=True)


@pytest.mark.parametrize(("name", "depth"), [("resnet8", 21), ("resnet8", 2), ("wrn_10_2", 20), ("vgg8", 12)])
def test_invalid_depths(name, depth):
    family = type(make(name))
    arguments = (depth, 2) if name.startswith("wrn") else (depth,)
    with pytest.raises(ValueError, match=f"depth={depth}"):
        family(*arguments)

import pytest
import timm
import torch
from torch import nn

from kdbench.models import registry  # noqa: F401  registers the networks
from kdbench.models.cost import flops, parameters
from kdbench.models.features import Network


def test_counts_of_a_small_network_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 7))
    assert parameters(net) == (3 * 9 + 1) * 5 + (80 + 1) * 7
    assert flops(net, 3, 4) == 2 * (16 * 5 * 27 + 80 * 7)


def test_shared_parameters_are_counted_once():
    linear = nn.Linear(4, 4)
    assert parameters(nn.Sequential(linear, linear)) == 20


def test_frozen_parameters_are_counted():
    assert parameters(nn.Linear(4, 4).requires_grad_(False)) == 20


def test_normalising_the_images_is_not_counted():
    net = timm.create_model("cifar_resnet8")
    assert flops(Network(net, (0.5,) * 3, (0.2,) * 3), 3, 32) == flops(net, 3, 32)


def test_convolutions_cost_four_times_as_much_for_four_times_the_pixels():
    net = timm.create_model("cifar_wrn_10_2", num_classes=10)
    head = 2 * 128 * 10
    assert flops(net, 3, 64) - head == 4 * (flops(net, 3, 32) - head)


def test_counting_changes_nothing():
    network = Network(timm.create_model("cifar_resnet8"), (0.5,) * 3, (0.2,) * 3).train()
    tensors = [*network.named_parameters(), *network.named_buffers()]
    state = {key: (tensor, tensor.clone()) for key, tensor in tensors}
    attributes = set(vars(network.net.layer1))
    rng_state = torch.get_rng_state()
    flops(network, 3, 32)
    assert torch.equal(torch.get_rng_state(), rng_state)
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        assert tensor is state[key][0]
        assert torch.equal(tensor, state[key][1])
    assert all(m.training for m in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert set(vars(network.net.layer1)) == attributes


@pytest.mark.parametrize(
    ("name", "macs"),  # in 1e9, at 224 pixels and 1000 classes, from torchvision's model tables
    [("resnet18", 1.81), ("efficientnet_b0", 0.39), ("densenet121", 2.83), ("convnext_tiny", 4.46)],
)
def test_well_known_networks(name, macs):
    with torch.device("meta"):
        net = timm.create_model(name)
    assert flops(net, 3, 224) / 2e9 == pytest.approx(macs, abs=0.005)


def test_attention_is_counted():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
    tokens, width = 5, 192
    linear = tokens * width * width * (3 + 1 + 4 + 4)  # qkv, projection, MLP
    attention = 2 * tokens * tokens * width
    patches = 4 * 3 * 16 * 16 * width
    assert flops(net, 3, 32) == 2 * (linear + attention + patches)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "gmlp_ti16_224"])
def test_counts_agree_with_those_of_a_real_forward_pass(name):
    net = timm.create_model(name, img_size=32, num_classes=10).eval()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.rand(1, 3, 32, 32))
    assert flops(net, 3, 32) == counter.get_total_flops()

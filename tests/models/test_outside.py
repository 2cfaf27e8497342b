"""Networks by import path, whose features are read by the names of their modules."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.models.cost import flops
from kdbench.models.features import Shapes

HERE = "tests.helpers.networks"
SIZES: dict[str, Any] = {"num_classes": 4, "in_chans": 1, "image_size": 8, "mean": (0.5,), "std": (0.25,)}
NAMED: dict[str, Any] = {"stages": ["stage1", "stage2"], "classifier": "fc"}


def custom(name="Plain", **changes):
    return build(f"{HERE}.{name}", source="custom", **({**NAMED, **SIZES} | changes))


def refusal(name="Plain", **changes):
    with pytest.raises(UserError) as caught:
        custom(name, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert name.rpartition(".")[2] in message
    return message


@pytest.mark.parametrize(("name", "kwargs"), [("Plain", {}), ("plain", {"in_chans": 1})])
def test_features_are_those_of_the_named_modules(name, kwargs):
    network = custom(name, kwargs=kwargs).eval()
    net = network.net
    assert network.shapes == Shapes([(6, 8, 8), (12, 4, 4)], 12, 4)
    images = torch.rand(3, 1, 8, 8)
    first = net.stage1((images - 0.5) / 0.25)
    second = net.stage2(first)
    embedding = F.relu(second).mean((2, 3))
    stages, found, logits = network(images)
    torch.testing.assert_close(stages, [first, second])
    torch.testing.assert_close(found, embedding)
    torch.testing.assert_close(logits, net.fc(embedding))


def test_in_training_the_embedding_is_what_the_classifier_gets():
    network = custom(kwargs={"rate": 0.5}).train()
    _, embedding, logits = network(torch.rand(3, 1, 8, 8))
    torch.testing.assert_close(network.net.fc(embedding), logits)
    assert (embedding == 0).any()
    logits.sum().backward()
    assert network.net.stage1[0].weight.grad.abs().sum() > 0


def test_stages_may_be_inner_modules_in_any_order_or_none():
    assert custom(stages=["stage2.0", "stage1.1"]).shapes.stages == [(12, 4, 4), (6, 8, 8)]
    assert custom(stages=None).shapes == Shapes([], 12, 4)


def test_arguments_reach_the_function():
    network = custom(kwargs={"width": 3})
    assert network.shapes == Shapes([(3, 8, 8), (6, 4, 4)], 6, 4)
    assert custom("plain", kwargs={"width": 3, "in_chans": 1}).shapes == network.shapes


def test_the_sizes_that_the_function_names_are_passed():
    assert custom("without_channels", in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3).shapes.num_classes == 4
    assert "does not work with 1x8x8 images" in refusal("without_channels")
    assert custom("of_ten_classes", num_classes=10, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    message = refusal("of_ten_classes", in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert message.endswith("it gives 10 logits, and there are 4 classes")


def test_the_origin_rebuilds_the_network():
    network = custom(kwargs={"width": 3})
    again = build(**network.origin.options, **network.origin.sizes)
    assert again.shapes == network.shapes
    again.net.load_state_dict(network.export_state())


def test_a_network_with_the_methods_of_timm_needs_no_names():
    network = build("kdbench.models.resnet.ResNet", source="custom", kwargs={"depth": 8}, **SIZES)
    assert network.shapes == build("resnet8", **SIZES).shapes


def test_a_copy_has_features_of_its_own():
    network = custom().eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.net.parameters():
            parameter.zero_()
    images = torch.rand(2, 1, 8, 8)
    assert network(images).stages[0].abs().sum() > 0
    assert other(images).stages[0].abs().sum() == 0
    assert not network.named._outputs
    assert not network.named._embeddings


def test_compiles_as_one_graph():
    network = custom().eval()
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        for _ in range(2):
            stages, embedding, logits = compiled(images)
            expected = network(images)
            torch.testing.assert_close([*stages, embedding, logits], [*expected.stages, *expected[1:]])


def test_operations_are_counted():
    convolutions = 64 * 9 * 6 + 16 * 9 * 6 * 12
    assert flops(custom(), 1, 8) == 2 * (convolutions + 12 * 4)


def test_probing_leaves_only_the_hooks_of_the_features():
    network = custom()
    hooks = [len(module._forward_hooks) for module in (network.net.stage1, network.net.stage2)]
    assert hooks == [1, 1]


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("Plain", {"stages": ["layer1"]}, "has no module 'layer1'; it has: stage1, stage2, drop, fc"),
        ("Plain", {"classifier": "head"}, "has no module 'head'"),
        ("Plain", {"stages": None, "classifier": None}, "has no get_classifier()"),
        ("Plain", {"stages": ["drop"]}, "are not (B, C, H, W)"),
        ("Plain", {"kwargs": {"widht": 3}}, "has no argument widht; it has: width, rate"),
        ("plain", {"kwargs": {"widht": 3}}, "has no argument widht"),
        ("plain", {"kwargs": {"num_classes": 4}}, "kwargs.num_classes is not allowed: it follows from the data"),
        ("Plain", {"kwargs": {"in_chans": 1}}, "kwargs.in_chans is not allowed: it follows from the data"),
        ("Plain", {"kwargs": {"width": "a"}}, "kwargs={'width': 'a'}"),
        ("Mutating", {}, "module stage1 is not possible as a stage: a later layer changes its output in place"),
        ("Scaling", {}, "its last linear layer differs from the network's output"),
        ("Twice", {}, "must be computed once in a forward pass, not 2 times"),
        ("failing", {}, "no network of 4 classes"),
        ("a_tensor", {}, "returns Tensor, not an nn.Module"),
        ("NOT_CALLABLE", {}, "has no such function"),
        ("absent", {}, "has no such function"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(name, changes, part):
    assert part in refusal(name, **changes)


def test_a_module_that_is_not_there_or_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_networks.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match="no module no_such_module"):
        build("no_such_module.make", source="custom", **SIZES)
    with pytest.raises(UserError, match=r"broken_networks.make cannot be imported: ModuleNotFoundError.*no_such_pack"):
        build("broken_networks.make", source="custom", **SIZES)

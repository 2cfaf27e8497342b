"""Feature methods between networks of different kinds, and pairs that are refused with the reason."""

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from tests.helpers.methods import COLOUR, method_of, network_of

BATCH = Batch(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4), torch.arange(4))


def network(name):
    source, _, name = name.rpartition(":")
    torch.manual_seed(0)
    return network_of({"name": name, "source": source or "cifar"}, COLOUR)


def method(name, student, teacher, *overrides):
    return method_of(name, f"student={student}", f"teacher={teacher}", *overrides, sizes=COLOUR)


def chosen(name, student, teacher):
    """Indices of the stage maps that the method compares by default."""
    with torch.device("meta"):
        return method(name, student, teacher).pairs


PAIRS = [("vgg13", "mobilenetv2"), ("resnet50", "vgg8"), ("resnet8x4", "shufflenetv1"), ("wrn_10_2", "shufflenetv2"),
         ("timm:resnet18", "resnet8"), ("timm:vit_tiny_patch16_224", "resnet8"),
         ("resnet8", "timm:mobilenetv3_small_050")]  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_every_feature_method_works_between_kinds(teacher, student):
    networks = {"student": network(student), "teacher": network(teacher)}
    parameters = list(networks["student"].parameters())
    for name in ("fitnet", "at", "sp", "rkd"):
        overrides = ["method.stages=[1,2,3]"] if name == "at" else []  # the last maps of some have a single pixel
        losses = method_of(name, *overrides, **networks).batch_losses(BATCH)
        assert all(torch.isfinite(loss) for loss in losses.values()), name
        networks["student"].zero_grad()
        sum(loss for key, loss in losses.items() if key != "ce").backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0, name
        assert all(torch.isfinite(gradient).all() for gradient in gradients), name


def test_published_pairs_use_the_stages_of_the_published_code():
    # RepDistiller compares feat[1:-1], where feat lists the stem, the stages and the embedding
    assert chosen("at", "mobilenetv2", "vgg13") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert chosen("at", "resnet8x4", "resnet32x4") == [(1, 1), (2, 2), (3, 3)]
    assert chosen("at", "resnet8", "vgg13") == [(1, 2), (2, 3), (3, 4)]
    assert chosen("fitnet", "vgg8", "resnet50") == [(2, 2)]
    assert chosen("sp", "vgg8", "resnet50") == [(4, 4)]
    assert chosen("fsp", "resnet8", "resnet14") == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_extra_parameters_of_fitnet_are_those_published():
    # 16.8 K for resnet32x4 -> resnet8x4 (Zhao et al., Decoupled Knowledge Distillation, 2022, figure of costs)
    assert method("fitnet", "resnet8x4", "resnet32x4").extra_parameters() == 16768


def test_fsp_refuses_unequal_widths_with_the_reason():
    with pytest.raises(UserError, match=r"fsp needs networks of the same widths.* map 1 of the student has 16 .* 32"):
        method("fsp", "wrn_16_1", "wrn_16_2")
    with pytest.raises(UserError, match="only one"):
        method("fsp", "resnet8", "resnet14", "method.stages=[2]")
    assert method("fsp", "wrn_16_1", "wrn_16_2", "method.stages=[0,0]").pairs == [(0, 0), (0, 0)]


@pytest.mark.parametrize("overrides", [[], ["method.stages=[1,-1]"]], ids=str)
def test_at_refuses_maps_of_a_single_pixel(overrides):
    networks = {"student": network("resnet8"), "teacher": network("timm:resnet18")}
    with pytest.raises(UserError, match=r"map 3 of the student \(8x8\) with 4 of the teacher \(1x1\).*at\.stages="):
        method_of("at", *overrides, **networks)


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"at.stages=\[1, 9\] is not allowed: the student has 4 maps, 0 to 3"):
        method("at", "resnet8", "resnet14", "method.stages=[1,9]")

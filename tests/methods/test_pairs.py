"""Feature methods between networks of different kinds, and what is refused with the reason."""

import pytest
import torch

from kdbench.data.batch import Batch
from kdbench.errors import UserError
from kdbench.methods.fsp import FSP
from kdbench.models.build import build
from tests.helpers.methods import get_class, options

SIZES = {"num_classes": 5, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
BATCH = Batch(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4), torch.arange(4))


def network(name):
    source, _, name = name.rpartition(":")
    torch.manual_seed(0)
    return build(name, source=source or "cifar", **SIZES)


def method(name, student, teacher, **changes):
    node = options(name)["method"]
    own = {k: v for k, v in node.items() if k not in ("name", "needs", "_target_")} | changes
    return get_class(node["_target_"])(**own).attach(student, teacher, None, options(name)["recipe"])


PAIRS = [("vgg13", "mobilenetv2"), ("resnet50", "vgg8"), ("resnet32x4", "shufflenetv1"), ("wrn_40_2", "shufflenetv2"),
         ("resnet50", "mobilenetv2"), ("vgg8", "resnet8"), ("timm:resnet18", "resnet8"),
         ("timm:vit_tiny_patch16_224", "resnet8"), ("resnet8", "timm:mobilenetv3_small_050")]  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_every_feature_method_works_between_kinds(teacher, student):
    taught, own = network(teacher), network(student)
    for name in ("fitnet", "at", "sp", "rkd"):
        whole = method(name, own, taught)
        terms = whole.terms(BATCH)
        assert all(torch.isfinite(term) for term in terms.values()), name
        own.zero_grad()
        sum(term for key, term in terms.items() if key != "ce").backward()
        grads = [p.grad for p in own.parameters() if p.grad is not None]
        assert sum(g.abs().sum() for g in grads) > 0, name
        assert all(torch.isfinite(g).all() for g in grads), name


def test_the_fields_pairs_use_the_stages_of_the_fields_code():
    # RepDistiller compares feat[1:-1], its list being the stem, the stages and the embedding
    assert method("at", network("mobilenetv2"), network("vgg13")).pairs == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert method("at", network("resnet8x4"), network("resnet32x4")).pairs == [(1, 1), (2, 2), (3, 3)]
    assert method("at", network("resnet8"), network("vgg13")).pairs == [(1, 2), (2, 3), (3, 4)]
    assert method("fitnet", network("vgg8"), network("resnet50")).pairs == [(2, 2)]
    assert method("sp", network("vgg8"), network("resnet50")).pairs == [(4, 4)]
    assert method("fsp", network("resnet8"), network("resnet14")).pairs == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_extra_parameters_of_fitnet_are_those_published():
    # 16.8 K for resnet32x4 -> resnet8x4 (Zhao et al., Decoupled Knowledge Distillation, 2022, figure of costs)
    assert method("fitnet", network("resnet8x4"), network("resnet32x4")).extra_parameters() == 16768


def test_fsp_refuses_unequal_widths_with_the_reason():
    with pytest.raises(UserError, match=r"fsp needs networks of the same widths.* map 1 of the student has 16 .* 32"):
        method("fsp", network("wrn_16_1"), network("wrn_16_2"))
    with pytest.raises(UserError, match="only one"):
        method("fsp", network("resnet8"), network("resnet14"), stages=[2])
    assert isinstance(method("fsp", network("wrn_16_1"), network("wrn_16_2"), stages=[0, 0]), FSP)


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"at.stages=\[1, 9\] is not allowed: the student has 4 maps, 0 to 3"):
        method("at", network("resnet8"), network("resnet14"), stages=[1, 9])

"""The network: its shapes, the option that names it, and what of it is in the identity of a run."""

import pytest
import torch
from kdbench_dkd.small import small

from kdbench.config.groups import header, options
from kdbench.config.networks import network_options
from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.specs.resolve import spec_of

WORDS = ["method=my_dkd", "student=small", "dataset=digits"]


@pytest.mark.parametrize("width", [1, 4])
def test_each_stage_halves_the_image_and_the_second_doubles_the_channels(width):
    net = small(num_classes=3, in_chans=2, width=width)
    images = torch.zeros(5, 2, 8, 8)
    assert net[:1](images).shape == (5, width, 4, 4)
    assert net[:2](images).shape == (5, 2 * width, 2, 2)
    assert net(images).shape == (5, 3)


def test_kdbench_reads_its_stages_and_its_embedding():
    assert "small" in options("student")
    assert header("student/small")["what"]
    spec = spec_of([*WORDS, "student.kwargs.width=4"])
    sizes = {"num_classes": 10, "in_chans": 1, "image_size": 8, "mean": [0.5], "std": [0.5]}
    features = build(**network_options(spec.config["student"]), **sizes).eval()(torch.rand(6, 1, 8, 8))
    assert [stage.shape for stage in features.stages] == [(6, 4, 4, 4), (6, 8, 2, 2)]
    assert (features.embedding.shape, features.logits.shape) == ((6, 8), (6, 10))


def test_its_width_and_its_source_are_part_of_the_identity():
    spec, wide = spec_of(WORDS), spec_of([*WORDS, "student.kwargs.width=16"])
    assert spec.id != wide.id
    assert spec.identity.facts["code"]["student"]


def test_an_argument_that_it_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"student\.kwargs\.widht.*nearest: student\.kwargs\.width"):
        spec_of([*WORDS, "student.kwargs.widht=4"])

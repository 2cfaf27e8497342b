"""Vision transformers of timm as student and as teacher: whole runs, and what their maps allow."""

import pytest
import torch
from safetensors.torch import save_file

from kdbench.errors import UserError
from kdbench.models.build import build
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import assemble, untrained_teacher

LOSSES = {"kd": "kd", "rkd": "distance", "sp": "sp"}
SMALL = {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 1}


def vit(role, **kwargs):
    arguments = ",".join(f"{key}:{value}" for key, value in (SMALL | kwargs).items())
    return [f"{role}=timm", f"{role}.name=vit_tiny_patch16_224", f"{role}.kwargs={{{arguments}}}"]


@pytest.mark.parametrize("method", ["kd", "rkd", "sp"])
def test_a_vit_learns_and_teaches(method, tiny):
    words = [f"method={method}", "recipe.epochs=1", *vit("student"), *vit("teacher", depth=2)]
    record = tiny(*words)
    assert record.finished["teacher"]["name"] == "vit_tiny_patch16_224"
    assert record.epochs[-1][f"train/{LOSSES[method]}"] > 0


def test_a_vit_of_32_pixels_has_8_by_8_patches():
    sizes = {"num_classes": 4, "in_chans": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert build("vit_tiny_patch16_224", source="timm", kwargs=SMALL, **sizes).shapes.stages == [(12, 8, 8)]


@pytest.mark.parametrize("override", ["method=at", "plus=[at]"])
def test_maps_of_a_single_pixel_are_refused_by_at(override, words):
    spec = spec_of(words(override, *vit("student", patch_size=8)))
    with pytest.raises(UserError, match=r"at cannot compare stage map 0 of the student \(1x1\).*its loss is always 0"):
        assemble(spec, untrained_teacher(spec))


def test_a_network_without_maps_is_refused_by_at(words):
    own = ["student=custom", "student.name=tests.helpers.networks.Plain", "student.classifier=fc"]
    spec = spec_of(words("plus=[at]", *own))
    with pytest.raises(UserError, match="at compares stage maps, and the student gives none"):
        assemble(spec, untrained_teacher(spec))


def test_a_file_of_another_size_and_other_classes_teaches(tiny, tmp_path, capsys):
    sizes = {"num_classes": 7, "in_chans": 1, "image_size": 32, "mean": (0.5,), "std": (0.3,)}
    torch.manual_seed(0)
    network = build("vit_tiny_patch16_224", source="timm", kwargs=SMALL | {"patch_size": 8}, **sizes)
    path = tmp_path / "t.safetensors"
    save_file(network.export_state(), path)
    words = [f"teacher.checkpoint={path}", "teacher.classes=[6,0,3,1]", "recipe.epochs=1"]
    record = tiny(*words, *vit("teacher", patch_size=8), "teacher.image_size=32")
    line = " ".join(capsys.readouterr().out.split())
    assert f"teacher.checkpoint={path}: only the outputs teacher.classes kept, images normalised" in line
    other = tiny(*words, *vit("teacher"), "teacher.image_size=16")
    line = " ".join(capsys.readouterr().out.split())
    assert "patch_embed.proj.weight resampled from 12x1x8x8 to 12x1x4x4, images normalised" in line
    assert other.finished["teacher"]["id"] != record.finished["teacher"]["id"]

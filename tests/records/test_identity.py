"""What is part of a run's identity, and what is not."""

import json

import numpy as np
import pytest

from kdbench.config.overrides import from_overrides
from kdbench.errors import UserError
from kdbench.records.identity import Contents, identify, needs_teacher, teacher_file_identity
from kdbench.specs.resolve import spec_of


def identity(*overrides, teacher="t", images=None):
    cfg = from_overrides(list(overrides))
    return identify(cfg, Contents(images=images), {"teacher": teacher} if needs_teacher(cfg) else {})


@pytest.mark.parametrize(
    "override",
    ["outputs=/elsewhere", "dataset.root=/data", "dataset.download=true", "dataset.workers=1", "logger=csv",
     "force=true", "trainer.device=cpu", "trainer.compile=true", "trainer.progress=none",
     "trainer.checkpoint_seconds=3", "teacher.min_accuracy=0.5", "noise.clean_validation=true"],
)  # fmt: skip
def test_what_does_not_change_the_result_does_not_change_the_id(override):
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "method=ce", "method.alpha=0.5", "plus=[kd]", "student=resnet14", "dataset=mnist5k",
     "student.image_size=16", "dataset.val_fraction=0", "noise=symmetric", "recipe.lr=0.1", "imbalance=step",
     "trainer.precision=bf16-mixed", "debug=smoke"],
)  # fmt: skip
def test_what_changes_the_result_changes_the_id(override):
    assert identity(override).id != identity().id


def test_teacher_and_image_tree_are_part_of_the_id():
    assert len({identity().id, identity(teacher="u").id, identity(images="f").id}) == 3


def test_a_teachers_file_and_how_it_is_used_are_part_of_the_id(tmp_path):
    def run_id(content, *overrides):
        (tmp_path / "t.pth").write_text(content)
        return spec_of([f"teacher.checkpoint={tmp_path}/t.pth", *overrides]).id

    once = run_id("a")
    assert run_id("a") == once
    others = [
        run_id("b"),
        run_id("a", "teacher.mean=[0.1]"),
        run_id("a", "teacher.std=[0.1]"),
        run_id("a", "teacher=resnet32"),
    ]
    assert len({once, *others}) == 5


def test_the_classes_and_the_image_size_of_a_teachers_file_are_part_of_the_id(tmp_path):
    (tmp_path / "t.pth").write_text("a")

    def teacher(*overrides):
        return from_overrides([f"teacher.checkpoint={tmp_path}/t.pth", *overrides])["teacher"]

    chosen = [[], ["teacher.classes=[1,0]"], ["teacher.classes=[0,1]"], ["teacher.image_size=16"]]
    assert len({teacher_file_identity(teacher(*overrides)) for overrides in chosen}) == 4
    older = {key: value for key, value in teacher().items() if key not in ("classes", "image_size")}
    assert teacher_file_identity(older) == teacher_file_identity(teacher())


def test_id_is_stable_and_the_name_readable():
    one = identity("method=kd", "noise=symmetric", "seed=3")
    assert one.name == "kd-resnet20-resnet8-digits-symmetric0.4-s3"
    assert one.id == identity("method=kd", "noise=symmetric", "seed=3").id
    assert identity("method=ce").name == "ce-resnet8-digits-s0"
    assert len(one.id) == 12


def test_a_setting_is_all_but_the_seed():
    assert identity("seed=0").setting == identity("seed=1").setting
    overrides = ["method.temperature=2", "recipe.epochs=3", "dataset.val_fraction=0", "method=at", "noise=symmetric"]
    overrides += ["student.name=resnet14", "trainer.precision=bf16-mixed"]
    different = [identity(), identity(teacher="u"), *map(identity, overrides)]
    assert len({one.setting for one in different}) == len(different)
    name, _, tail = identity("seed=7").setting.rpartition("-")
    assert name == "kd-resnet20-resnet8-digits"
    assert len(tail) == 8


def test_names_tell_settings_of_noise_and_imbalance_apart():
    def middle(*overrides):
        return identity(*overrides, "seed=3").name.removeprefix("kd-resnet20-resnet8-digits-").removesuffix("s3")

    assert middle("noise=pairflip", "noise.rate=0.2", "imbalance=longtail") == "pairflip0.2-longtail100-"
    assert middle("noise=symmetric", "noise.rate=0") == ""
    assert middle("noise=human", "imbalance=power_law") == "human_worst-power_law0.2-"
    assert middle("noise=file", "imbalance=counts") == "file-counts-"
    assert middle("noise=asymmetric", "noise.rate=null", "noise.matrix=m.npy") == "asymmetric-"


def test_a_file_of_labels_counts_by_its_content(tmp_path):
    def run_id(label, name="labels.npy"):
        np.save(tmp_path / name, np.full(1438, label))
        spec = spec_of(["noise=file", f"noise.path={tmp_path / name}"])
        assert str(tmp_path) not in json.dumps(spec.identity.facts)
        return spec.id

    assert run_id(0) == run_id(0, "same.npy") != run_id(1)
    assert identity("noise=symmetric", "noise.clean_validation=true").id != identity("noise=symmetric").id
    with pytest.raises(UserError, match=r"noise\.path=absent\.npy: cannot be read"):
        spec_of(["noise=file", "noise.path=absent.npy"])


def test_facts_are_plain_json_without_paths():
    facts = identity("dataset.root=/secret").facts
    assert "/secret" not in json.dumps(facts)

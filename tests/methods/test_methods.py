"""Every method as a user runs it: end to end on real digits, broken off and continued, refused with the reason."""

import math
import re

import pytest

from kdbench import config
from kdbench.config import composed
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct
from kdbench.files import read_lines
from kdbench.training.callbacks import History
from tests.helpers.tiny import same

METHODS = options("method")
DIGITS = ["dataset=digits", "teacher=resnet14", "student=resnet8", "recipe=quick", "recipe.epochs=3", "logger=none",
          "trainer=cpu"]  # fmt: skip


LIGHT = ["method.synthetic.num_train=1000", "method.synthetic.num_test=100", "method.synthetic.epochs=2"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One folder for all, so the teacher is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("name", METHODS)
def test_trains_end_to_end_on_real_digits(outputs, name):
    run = conduct(spec_of([*DIGITS, f"outputs={outputs}", f"method={name}", *(LIGHT if name == "lwkd" else [])])[0])
    result, rows = run.result, list(read_lines(run.metrics))
    assert all(math.isfinite(value) for row in rows for key, value in row.items() if key.startswith("train/"))
    main = [row for row in rows if row["stage"] == "training"]
    assert len(main) == 3
    assert main[-1]["train/ce"] < main[0]["train/ce"]
    assert result["test"]["accuracy"] > 0.15  # chance is 0.1
    if name in ("dml", "one"):
        each = result["members"]["each"]
        single = [value["accuracy"] for key, value in each.items() if key != "ensemble"]
        assert each["student"].items() <= result["test"].items()
        assert result["members"]["mean"]["accuracy"] == pytest.approx(sum(single) / len(single))
        assert result["members"]["best"] == {"accuracy": max(single), "selected_on_test": True}
        assert result["teacher"] is None
    else:
        assert result["members"] is None
    if name == "lwkd":
        assert result["teacher"] is None
        assert result["cost"]["teacher_seconds"] > 0
        assert {"watch/discriminator_accuracy", "train/adversarial", "train/discriminator"} <= rows[-1].keys()
    if name == "skd":
        assert {f"watch/{key}" for key in ("kl_to_raw", "entropy", "agreement", "accuracy")} <= rows[-1].keys()
    if name == "tfkd_self":
        assert result["teacher"]["name"] == "resnet8"


@pytest.mark.parametrize(
    "words",
    [
        ["method=fsp", "method.first_stage.epochs=1"],
        ["method=fitnet", "method.training=staged", "method.first_stage.epochs=1"],
        ["method=bss"],
        ["method=one"],
        ["method=dml"],
        ["method=dml", "method.updates=alternating"],
        ["method=at", "plus=[rkd]"],
        ["method=skd", "plus=[at]"],
        ["method=lwkd", *LIGHT],
    ],
    ids=" ".join,
)
def test_broken_off_after_any_epoch_it_continues_to_the_same_bits(tiny, monkeypatch, words):
    original = History.on_train_epoch_end
    whole = tiny(*words).result
    total = 6 if "first_stage" in "".join(words) else 3
    for last in range(total):

        def break_off(self, trainer, module, last=last):
            original(self, trainer, module)
            if trainer.current_epoch == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(History, "on_train_epoch_end", break_off)
            tiny(*words, "force=true")
        run = tiny(*words)
        assert same(run.result) == same(whole), last
        rows = list(read_lines(run.metrics))
        assert [row["epoch"] for row in rows] == list(range(total))
        assert [row["stage"] != "training" for row in rows] == [total == 6 and epoch < 3 for epoch in range(total)]


def test_the_screen_names_the_stage(tiny, capsys):
    tiny("method=fsp", "recipe.epochs=1")
    shown = capsys.readouterr().out
    assert re.search(r"fsp\S+  epoch 1/2 \(flow\)  loss [\d.e-]+ fsp [\d.e-]+  val", shown)
    assert re.search(r"fsp\S+  epoch 2/2  loss [\d.]+ ce [\d.]+  val", shown)


# what cannot be -> what the line must say
REFUSED = {
    "method=kd plus=[kd]": ["plus=[kd] is not possible", "method already"],
    "plus=[dml]": ["plus=[dml] is not possible", "training step", "method=dml"],
    "plus=[one]": ["plus=[one] is not possible", "training step"],
    "plus=[bss]": ["plus=[bss] is not possible", "training step"],
    "plus=[lwkd]": ["plus=[lwkd] is not possible", "training step"],
    "plus=[tfkd_self]": ["plus=[tfkd_self] is not possible", "teacher of its own"],
    "method=skd method.heads=3": ["skd.heads=3", "4"],
    "method=lwkd dataset.num_classes=1001 dataset.num_train=1100": ["method=lwkd", "2 to 1000", "1001"],
    "method=lwkd dataset.num_classes=500 dataset.num_train=600": [
        "method=lwkd cannot synthesise",
        "image_size=8",
        "12",
    ],
    "method=lwkd method.synthetic.num_train=3": ["method=lwkd cannot synthesise", "num_train=3"],
    "recipe.stop_after=4": ["recipe.stop_after=4", "recipe.epochs=3"],
    "teacher.recipe.stop_after=4": ["teacher.recipe.stop_after=4"],
    "teacher.shuffle=classes": ["teacher.shuffle=classes", "nearest: class"],
    "plus=[ce]": ["plus=[ce] is not possible", "adds no loss"],
    "plus=[fsp]": ["plus=[fsp] is not possible", "plus.fsp.training=joint"],
    "plus=[fitnet] plus.fitnet.training=staged": ["plus=[fitnet] is not possible", "plus.fitnet.training=joint"],
    "method=fsp teacher=wrn_16_2 student=resnet8": ["fsp", "same widths", "32", "16"],
    "method=at plus=[fsp] plus.fsp.training=joint teacher=wrn_10_2": ["fsp", "same widths"],
    "method=one student=mobilenetv2 dataset.image_size=32": ["ResNet, WRN, VGG and LeNet", "MobileNetV2"],
    "method=one method.last_norm=shared": ["last_norm=shared"],
    "method=dml method.peers=[]": ["peers=[]"],
    "method=dml method.peers=[resnet9]": ["resnet9", "resnet8"],
    "method=at method.stages=[7]": ["at.stages=[7]", "4 maps"],
    "method=fitnet method.stages=[]": ["fitnet.stages=[]"],
    "method=sp method.stages=[[1,2,3]]": ["sp.stages", "[student, teacher]"],
    "method=at method.variant=papers": ["method.variant=papers", "nearest: paper"],
    "method=bss method.attack_fraction=2": ["method.attack_fraction=2", "(0, 1]"],
    "method=one method.branches=1": ["method.branches=1", ">= 2"],
    "method=fsp method.first_stage.epochs=0": ["method.first_stage.epochs=0", "> 0"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(tiny, tmp_path, words):
    with pytest.raises(UserError) as caught:
        tiny(*words.split())
    message = str(caught.value)
    assert "\n" not in message
    for word in REFUSED[words]:
        assert word in message
    assert not list(tmp_path.glob("outputs/runs/*/status.json"))


def test_presets_of_rkd_are_rkd_with_one_weight():
    plain = from_overrides(["method=rkd"])["method"]
    assert from_overrides(["method=rkd_d"])["method"] == {**plain, "name": "rkd_d", "angle_weight": 0.0}
    assert from_overrides(["method=rkd_a"])["method"] == {**plain, "name": "rkd_a", "distance_weight": 0.0}
    assert from_overrides(["method=kd", "plus=[rkd_d]"])["plus"]["rkd_d"]["angle_weight"] == 0.0


def test_peers_are_named_in_the_configuration_and_in_the_identity(tiny):
    assert from_overrides(["method=dml", "student=wrn_16_2"])["method"]["peers"] == ["wrn_16_2"]
    ids = {spec_of((["method=dml", f"method.peers={peers}"])[0]).id for peers in ("[resnet8]", "[resnet14]")}
    assert len(ids) == 2

"""Every method as a user runs it: end to end on real digits, interrupted and continued, refused with the reason."""

import math
import re

import pytest

from kdbench.config.groups import addable_methods, options
from kdbench.config.overrides import from_overrides
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from kdbench.training.callbacks import History
from kdbench.training.conduct import conduct
from tests.helpers.tiny import LIGHT, same

METHODS = options("method")
DIGITS = ["dataset=digits", "teacher=resnet14", "student=resnet8", "recipe=quick", "recipe.epochs=3", "logger=none",
          "trainer=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One folder for all runs, so that the teacher is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("name", METHODS)
def test_trains_end_to_end_on_real_digits(outputs, name):
    overrides = [*DIGITS, f"outputs={outputs}", f"method={name}", *(LIGHT if name == "lwkd" else [])]
    record = conduct(spec_of(overrides))
    result, rows = record.result, record.epochs
    assert all(math.isfinite(value) for row in rows for key, value in row.items() if key.startswith("train/"))
    main = [row for row in rows if row["stage"] == "training"]
    assert len(main) == 3
    assert main[-1]["train/ce"] < main[0]["train/ce"]
    assert result["test"]["accuracy"] > 0.15  # chance is 0.1
    if name in ("dml", "one"):
        scores = result["members"]["each"]
        accuracies = [score["accuracy"] for member, score in scores.items() if member != "ensemble"]
        assert scores["student"].items() <= result["test"].items()
        assert result["members"]["mean"]["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert result["members"]["best"] == {"accuracy": max(accuracies), "selected_on_test": True}
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
    ("overrides", "epochs"),
    [
        (["method=fitnet", "method.training=staged", "method.first_stage.epochs=1"], 6),
        (["method=bss"], 3),
        (["method=one"], 3),
        (["method=dml", "method.updates=alternating"], 3),
        (["method=skd", "plus=[at]"], 3),
        (["method=lwkd", *LIGHT], 3),
    ],
)
def test_interrupted_in_every_epoch_it_continues_to_the_same_bits(tiny, monkeypatch, overrides, epochs):
    original = History.on_train_epoch_end
    expected = tiny(*overrides).result
    for last in range(epochs):  # each run repeats the epoch in which the one before it was interrupted

        def interrupt(self, trainer, module, last=last):
            original(self, trainer, module)
            if trainer.current_epoch == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(History, "on_train_epoch_end", interrupt)
            tiny(*overrides, f"force={last == 0}")
    record = tiny(*overrides)
    assert same(record.result) == same(expected)
    assert [row["epoch"] for row in record.epochs] == list(range(epochs))
    first = ["hint"] * (epochs - 3)
    assert [row["stage"] for row in record.epochs] == [*first, *["training"] * 3]


def test_the_screen_names_the_stage(tiny, capsys):
    tiny("method=fsp", "recipe.epochs=1")
    shown = capsys.readouterr().out
    assert re.search(r"fsp\S+  epoch 1/2 \(flow\)  loss [\d.e-]+ fsp [\d.e-]+  val", shown)
    assert re.search(r"fsp\S+  epoch 2/2  loss [\d.]+ ce [\d.]+  val", shown)


# what is not possible, and parts of the message
REFUSED = {
    "method=kd plus=[kd]": ["plus=[kd] is not possible", "method already"],
    "plus=[dml]": ["plus=[dml] is not possible", "training step", "method=dml"],
    "plus=[tfkd_self]": ["plus=[tfkd_self] is not possible", "teacher of its own"],
    "plus=[ce]": ["plus=[ce] is not possible", "adds no loss"],
    "plus=[fsp]": ["plus=[fsp] is not possible", "plus.fsp.training=joint"],
    "plus=[fitnet] plus.fitnet.training=staged": ["plus=[fitnet] is not possible", "plus.fitnet.training=joint"],
    "method=skd method.heads=3": ["skd.heads=3", "4"],
    "method=lwkd dataset.num_classes=1001 dataset.num_train=1100": ["method=lwkd", "2 to 1000", "1001"],
    "method=lwkd dataset.num_classes=500 dataset.num_train=600": ["method=lwkd cannot have its", "image_size=8", "12"],
    "method=lwkd method.synthetic.num_train=3": ["method=lwkd cannot have its", "num_train=3"],
    "recipe.stop_after=4": ["recipe.stop_after=4", "recipe.epochs=3"],
    "teacher.recipe.stop_after=4": ["teacher.recipe.stop_after=4"],
    "teacher.shuffle=classes": ["teacher.shuffle=classes", "nearest: class"],
    "method=fsp teacher=wrn_16_2 student=resnet8": ["fsp", "same widths", "32", "16"],
    "method=at plus=[fsp] plus.fsp.training=joint teacher=wrn_10_2": ["fsp", "same widths"],
    "method=dml method.peers=[resnet9]": ["resnet9", "resnet8"],
    "method=at method.variant=papers": ["method.variant=papers", "nearest: paper"],
    "method=bss method.attack_fraction=2": ["method.attack_fraction=2", "(0, 1]"],
    "method=one method.branches=1": ["method.branches=1", ">= 2"],
    "method=fsp method.first_stage.epochs=0": ["method.first_stage.epochs=0", "> 0"],
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_is_not_possible_is_refused_before_anything_is_trained(tiny, tmp_path, overrides):
    with pytest.raises(UserError) as caught:
        tiny(*overrides.split())
    message = str(caught.value)
    assert "\n" not in message
    for part in REFUSED[overrides]:
        assert part in message
    assert not list(tmp_path.glob("outputs/runs/*/status.json"))


def test_methods_without_a_loss_that_can_be_added():
    alone = set(METHODS) - set(addable_methods())
    assert alone == {"bss", "catkd", "ce", "crd", "dml", "lwkd", "one", "srrl", "tfkd_self"}


def test_presets_of_rkd_are_rkd_with_one_weight():
    plain = from_overrides(["method=rkd"])["method"]
    assert from_overrides(["method=rkd_d"])["method"] == {**plain, "name": "rkd_d", "angle_weight": 0.0}
    assert from_overrides(["method=rkd_a"])["method"] == {**plain, "name": "rkd_a", "distance_weight": 0.0}
    assert from_overrides(["method=kd", "plus=[rkd_d]"])["plus"]["rkd_d"]["angle_weight"] == 0.0


def test_peers_are_part_of_configuration_and_identity():
    assert from_overrides(["method=dml", "student=wrn_16_2"])["method"]["peers"] == ["wrn_16_2"]
    ids = {spec_of(["method=dml", f"method.peers={peers}"]).id for peers in ("[resnet8]", "[resnet14]")}
    assert len(ids) == 2

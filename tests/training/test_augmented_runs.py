"""Augmentation and mixing in whole runs: what reaches the networks, continued runs, teachers, and what is refused."""

import pytest
import torch

from kdbench.errors import UserError
from kdbench.methods.method import Method
from kdbench.records import weights
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import data_of
from kdbench.training.callbacks import History
from tests.helpers.tiny import LIGHT, same

FULL = ["recipe.augment=randaugment", "recipe.erasing=0.5", "recipe.cutout=4", "recipe.mixup=0.4", "recipe.cutmix=1.0"]
SINGLE = ["augment=randaugment", "augment=trivialaugment", "erasing=0.5", "cutout=4", "mixup=0.4", "cutmix=1.0"]
SHORT = ["recipe.epochs=2", "teacher.recipe.stop_after=0"]


def rows_of(record):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in record.epochs]


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_every_option_changes_the_training(tiny, loader):
    words = ["method=ce", "recipe.epochs=2", f"dataset.loader={loader}", "dataset.workers=0"]
    records = [tiny(*words), *(tiny(*words, f"recipe.{option}") for option in SINGLE)]
    students = [torch.cat([v.flatten().float() for v in weights.read(r.weights, "").values()]) for r in records]
    assert all(student.isfinite().all() for student in students)
    assert len({record.id for record in records}) == len(records)
    for i, student in enumerate(students):
        assert not any(torch.equal(student, other) for other in students[:i])


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=kd"],
        ["method=kd", "dataset.loader=streaming", "dataset.workers=0"],
        ["method=fitnet", "method.training=staged"],
        ["method=dml"],
    ],
)
def test_a_run_that_breaks_off_continues_to_the_same_bits(tiny, tmp_path, monkeypatch, overrides):
    words = [*FULL, *overrides, "teacher.recipe.epochs=1"]
    original = History.on_train_epoch_end

    def break_off(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:  # the teacher has only one epoch
            raise KeyboardInterrupt

    whole = tiny(*words)
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(History, "on_train_epoch_end", break_off)
        tiny(*words, f"outputs={tmp_path}/other")
    continued = tiny(*words, f"outputs={tmp_path}/other")
    assert same(continued.finished) == same(whole.finished)
    assert rows_of(continued) == rows_of(whole)


def test_student_and_teacher_see_the_images_of_the_loader(tiny, words, monkeypatch):
    original, trained = Method.forward_both, []

    def recorded(self, batch):
        seen = {}
        networks = {"student": self.student, "teacher": self.teacher.network}
        hooks = [
            network.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].clone()}))
            for name, network in networks.items()
        ]
        features = original(self, batch)
        for hook in hooks:
            hook.remove()
        trained.append(seen)
        return features

    monkeypatch.setattr(Method, "forward_both", recorded)
    overrides = ["method=kd", *SHORT, *FULL]
    tiny(*overrides)
    data, expected = data_of(spec_of(words(*overrides))), []
    for epoch in range(2):
        data.set_epoch(epoch)
        expected += data.train_dataloader()
    assert all(batch.mixed is not None for batch in expected)
    for seen, batch in zip(trained, expected, strict=True):
        assert torch.equal(seen["student"], batch.images)
        assert torch.equal(seen["teacher"], batch.images)


def test_a_teacher_has_the_options_of_its_own_recipe(words):
    def recipes(*overrides):
        spec = spec_of(words(*overrides))
        return spec.config["recipe"], spec.dependencies["teacher"].config["recipe"]

    keys = {"augment": "randaugment", "erasing": 0.5, "cutout": 4, "mixup": 0.4, "cutmix": 1.0}
    student, teacher = recipes(*FULL)
    assert [{key: recipe[key] for key in keys} for recipe in (student, teacher)] == [keys, keys]
    student, teacher = recipes(*FULL, "teacher.recipe.mixup=0", "teacher.recipe.augment=none")
    assert student["mixup"] == 0.4
    assert (teacher["mixup"], teacher["augment"], teacher["cutmix"]) == (0, "none", 1.0)


def test_the_digits_of_a_lightweight_teacher_are_not_augmented(words):
    spec = spec_of(words("method=lwkd", *LIGHT, "recipe.augment=randaugment", "recipe.erasing=0.5", "recipe.cutout=4"))
    recipe = spec.dependencies["lightweight_teacher"].config["recipe"]
    assert [recipe[key] for key in ("augment", "erasing", "cutout", "mixup", "cutmix")] == ["none", 0.0, 0, 0.0, 0.0]


def test_a_mixed_teacher_of_a_method_that_takes_no_mixed_labels(tiny):
    words = ["method=bss", "recipe.epochs=1", "teacher.recipe.epochs=1"]
    mixed, plain = (tiny(*words, f"teacher.recipe.mixup={alpha}").finished["teacher"] for alpha in (0.4, 0.0))
    assert mixed["id"] != plain["id"]


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "no such policy": (["recipe.augment=randomaugment"], ["recipe.augment=randomaugment", "nearest: randaugment"]),
    "a probability above 1": (["recipe.erasing=1.5"], ["recipe.erasing=1.5", "float in [0, 1]"]),
    "half a pixel": (["recipe.cutout=0.5"], ["recipe.cutout=0.5", "int >= 0"]),
    "a negative alpha": (["recipe.mixup=-1"], ["recipe.mixup=-1", "float >= 0"]),
    "another": (["recipe.cutmix=-0.2"], ["recipe.cutmix=-0.2", "float >= 0"]),
    "nothing left of the images": (["recipe.cutout=16"], ["recipe.cutout=16", "< 16"]),
    "nothing left of the teacher's": (["teacher.recipe.cutout=17"], ["teacher.recipe.cutout=17", "< 16"]),
    "classes of mixed images": (
        ["teacher.shuffle=class", "recipe.mixup=0.2"], ["recipe.mixup=0.2", "teacher.shuffle=class", "only 0"],
    ),
    "classes of cut images": (
        ["method=ce", "plus=[kd]", "teacher.shuffle=class", "recipe.cutmix=1"], ["recipe.cutmix=1", "shuffle=class"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_possible_is_refused_in_one_line(words, what):
    overrides, expected = REFUSED[what]
    with pytest.raises(UserError) as caught:
        spec_of(words(*overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(
    "overrides", [["teacher.shuffle=batch", "recipe.mixup=0.2"], ["method=ce", "teacher.shuffle=class", *FULL]]
)
def test_what_needs_no_classes_is_possible(words, overrides):
    assert spec_of(words("recipe.cutout=15", *overrides))


@pytest.mark.parametrize("overrides", [["method=bss"], ["method=kd", "plus=[tfkd_reg]"]])
def test_a_method_of_one_label_is_refused_before_anything_is_trained(tiny, tmp_path, overrides):
    with pytest.raises(UserError, match=r"recipe\.mixup=0\.2 is not possible with (BSS|plus=\[tfkd_reg\]), only 0: "):
        tiny(*overrides, "recipe.mixup=0.2")
    assert not list(tmp_path.glob("outputs/runs/*"))

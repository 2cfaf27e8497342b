import pytest

from kdbench.config.groups import options
from kdbench.config.networks import NETWORKS
from kdbench.config.overrides import from_overrides
from kdbench.report.yardsticks import published, yardsticks

PAIR = ("dataset=cifar100", "dataset.val_fraction=0", "teacher=resnet56", "student=resnet20", "logger=none")
MOBILE = (*PAIR[:2], "teacher=vgg13", "student=mobilenetv2")


def published_for(*overrides):
    return published(from_overrides(list(overrides)))


@pytest.mark.parametrize(("method", "accuracy"), [
    ("ce", 0.6906), ("kd", 0.7066), ("fitnet", 0.6921), ("at", 0.7055), ("sp", 0.6967), ("rkd", 0.6961),
    ("fsp", 0.6995),
])  # fmt: skip
def test_the_published_value_of_a_pair(method, accuracy):
    value = published_for(*PAIR, f"method={method}")
    assert value.accuracy == pytest.approx(accuracy)
    assert value.protocol == "last epoch"


@pytest.mark.parametrize("override", [
    "dataset.val_fraction=0.1", "recipe.epochs=100", "noise=symmetric", "imbalance=longtail", "method.temperature=2",
    "plus=[at]", "teacher.recipe.epochs=10", "teacher.shuffle=batch", "trainer.max_batches=5", "recipe=quick",
    "student=resnet8", "dataset.flip=false",
])  # fmt: skip
def test_an_experiment_that_departs_from_the_published_one_has_none(override):
    assert published_for(*PAIR, override) is None


def test_small_networks_have_the_learning_rate_of_the_publication():
    assert published_for(*MOBILE).accuracy == pytest.approx(0.6737)
    assert published_for(*MOBILE, "recipe.lr=0.05") is None
    assert published_for(*MOBILE, "recipe.lr=0.01") is None  # the teacher's follows the student's
    assert published_for(*MOBILE, "recipe.lr=0.01", "teacher.recipe.lr=0.05").accuracy == pytest.approx(0.6737)


def test_all_networks_are_known_and_all_values_are_accuracies():
    assert len(yardsticks()) == 15 + 162
    for (teacher, student, method), value in yardsticks().items():
        assert {teacher, student} <= {"", *NETWORKS}
        assert 0.5 < value.accuracy < 0.8
        assert value.source
        assert (teacher == "") == (method == "ce")
    assert {"kd", "fitnet", "at", "sp", "rkd", "fsp"} <= {method for _, _, method in yardsticks()} & set(
        options("method")
    )

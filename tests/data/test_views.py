"""How many views of an image there are, and how many images: the same as those who make them say."""

import pytest
import torch

from kdbench.config.overrides import from_overrides
from kdbench.data import embedded
from kdbench.data.batch import Training
from kdbench.data.resident import ResidentLoader
from kdbench.data.views import training_images, uncountable, views_of, worth_keeping
from kdbench.specs.resolve import spec_of
from kdbench.training.assemble import data_of
from tests.helpers.data import part
from tests.helpers.tiny import TINY


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("padding", "mode"), [(0, "zero"), (2, "zero"), (1, "reflect")])
def test_chosen_views_are_those_of_an_epoch(padding, mode, flip):
    training = Training(3, padding, mode, flip)
    data = part(7, size=6, channels=3)
    loader = ResidentLoader(data, 3, training=training)
    positions = {index: position for position, index in enumerate(data.index.tolist())}
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            samples = torch.tensor([positions[index] for index in batch.index.tolist()])
            again = loader.views(samples, batch.views % training.views)
            for one, other in zip(batch, again, strict=True):
                assert one is other is None or torch.equal(one, other)
            assert again.images.stride() == batch.images.stride()


def test_all_views_of_an_image_differ():
    training = Training(0, 1, "reflect", True)
    loader = ResidentLoader(part(2, size=6), 2, training=training)
    count = training.views
    batch = loader.views(torch.ones(count, dtype=torch.int64), torch.arange(count))
    assert len({image.numpy().tobytes() for image in batch.images}) == count == 18


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("dataset.padding_mode=zero", None),
        ("dataset.loader=streaming", "dataset.loader=streaming"),
        ("recipe.augment=randaugment", "recipe.augment=randaugment"),
        ("recipe.mixup=0.2", "recipe.mixup=0.2"),
        ("recipe.cutmix=1.0", "recipe.cutmix=1.0"),
        ("recipe.cutout=2", "recipe.cutout=2"),
        ("recipe.erasing=0.5", "recipe.erasing=0.5"),
    ],
)
def test_views_cannot_be_counted_exactly_where_batches_have_no_numbers(override, why):
    spec = spec_of([*TINY, "method=ce", override, "dataset.workers=0"])
    data = data_of(spec)
    batch = next(iter(data.train_dataloader()))
    assert uncountable(spec.config["dataset"], spec.config["recipe"]) == why
    assert (data.views is None) == (batch.views is None) == (why is not None)


def test_a_random_resized_crop_cannot_be_counted():
    config = from_overrides([*TINY, "method=ce", "dataset.crop_padding=null"])
    assert uncountable(config["dataset"], config["recipe"]) == "dataset.crop_padding=null"
    assert views_of(None, True, "none") is None


@pytest.mark.parametrize("source", embedded.FILES)
def test_the_known_numbers_of_images_are_those_of_the_data(source):
    assert training_images({"source": source, "tree": None}) == len(embedded.load(source)[0].labels)


def test_numbers_of_images_that_only_reading_tells():
    assert training_images({"source": "fake", "tree": None, "num_train": 80}) == 80
    assert training_images({"source": "cifar100", "tree": "/images"}) is None
    assert training_images({"source": "imagefolder", "tree": None}) is None


def test_few_epochs_with_many_views_are_not_worth_keeping():
    assert not worth_keeping(162, 10)
    assert worth_keeping(162, 30)
    assert worth_keeping(9, 3)
    assert not worth_keeping(9, 1)

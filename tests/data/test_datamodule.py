import hashlib

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from kdbench.data import sources
from kdbench.data.batch import Batch
from kdbench.data.module import EVAL_BATCH_SIZE
from kdbench.data.resident import ResidentLoader
from kdbench.data.streaming import StreamingLoader
from kdbench.errors import UserError
from tests.helpers.data import data_module, group, load, module, same, symmetric


class Linear(pl.LightningModule):
    """A linear classifier that keeps the indices it is trained on and counts the samples it is tested on."""

    def __init__(self, data):
        super().__init__()
        self.net = torch.nn.Linear(data.in_chans * data.image_size**2, data.num_classes)
        self.epochs: list[list[int]] = []
        self.counts = {"val": 0, "test": 0}

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, step):
        assert isinstance(batch, Batch)
        self.epochs[-1] += batch.index.tolist()
        return F.cross_entropy(self.net(batch.images.flatten(1)), batch.labels)

    def validation_step(self, batch, step):
        self.counts["val"] += len(batch.labels)

    def test_step(self, batch, step):
        self.counts["test"] += len(batch.labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, epochs=2):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_lightning_trains_validates_and_tests_with_the_data_module(tmp_path, loader):
    data = module("fake", loader=loader, workers=0)
    model, engine = Linear(data), trainer(tmp_path)
    engine.fit(model, datamodule=data)
    assert [len(set(e)) for e in model.epochs] == [448, 448]  # 462 minus the partial batch
    assert model.epochs[0] != model.epochs[1]  # the Trainer sets the epoch by itself
    assert model.counts["val"] % 50 == 0
    assert model.counts["val"] > 0
    engine.test(model, datamodule=data, verbose=False)
    assert model.counts["test"] == 256
    without_trainer = module("fake")  # a hand-written loop gets the same epoch
    without_trainer.set_epoch(1)
    assert torch.cat([b.index for b in without_trainer.train_dataloader()]).tolist() == model.epochs[1]


@pytest.mark.filterwarnings("ignore")
def test_lightning_skips_validation_without_a_validation_part(tmp_path):
    data = module("fake", val_fraction=0.0)
    assert data.val_size == 0
    assert data.train_size == 512
    assert data.val_dataloader() == []
    model = Linear(data)
    trainer(tmp_path, 1).fit(model, datamodule=data)
    assert model.counts["val"] == 0
    assert len(model.epochs[0]) == 512


def test_sizes_for_networks_are_known_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("loaded"))
    data = data_module(group("dataset", "digits"))
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, 8)
    assert (data.mean, data.std) == ((0.3053,), (0.3759,))


def test_mean_and_std_are_per_channel_and_are_0_and_1_without_normalisation():
    assert module("fake").mean == (0.5, 0.5, 0.5)
    unnormalised = module("fake", normalize=False)
    assert (unnormalised.mean, unnormalised.std) == ((0.0,) * 3, (1.0,) * 3)
    images = next(iter(unnormalised.test_dataloader())).images
    assert images.min() >= 0
    assert images.max() <= 1


def test_index_and_labels_refer_to_the_source():
    data = module("digits")
    train, test = load(group("dataset", "digits"))
    for loader, source in ((data.val_dataloader(), train), (data.test_dataloader(), test)):
        for images, labels, index, *_ in loader:
            assert np.array_equal(source.labels[index], labels.numpy())
            assert np.array_equal(source.images[index], (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    held_out = torch.cat([b.index for b in data.val_dataloader()]).tolist()
    assert sorted([*held_out, *data.train_index]) == list(range(len(train.labels)))
    for _, labels, index, *_ in data.train_dataloader():
        assert np.array_equal(train.labels[index], labels.numpy())


def test_labels_hash_covers_labels_and_positions():
    data = module("digits")
    expected = hashlib.sha256(data.train_labels.astype("<i8").tobytes() + data.train_index.astype("<i8").tobytes())
    assert data.labels_hash == expected.hexdigest()
    assert module("digits", split_seed=1).labels_hash != data.labels_hash


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one():
    uninterrupted, resumed = module("digits", seed=5), module("digits", seed=5)
    loader = uninterrupted.train_dataloader()
    for epoch in range(3):
        uninterrupted.set_epoch(epoch)
        batches = list(loader)
    resumed.set_epoch(2)  # before the loader is made
    assert same(resumed.train_dataloader(), batches)
    other_seed = module("digits", seed=6)
    other_seed.set_epoch(2)
    assert not same(other_seed.train_dataloader(), batches)


def test_the_loader_depends_on_the_loader_key_and_on_the_size_of_the_data(monkeypatch):
    assert isinstance(module("fake").train_dataloader(), ResidentLoader)
    assert isinstance(module("fake", loader="streaming", workers=0).train_dataloader(), StreamingLoader)
    assert isinstance(module("fake", crop_padding=None, workers=0).train_dataloader(), StreamingLoader)
    size = (512 + 256) * 32 * 32 * 3
    for limit, resident in ((size, True), (size - 1, False)):
        monkeypatch.setattr("kdbench.data.module.RESIDENT_LIMIT", limit)
        assert module("fake").resident is resident
        assert module("fake", loader="resident").resident


def test_evaluation_uses_large_batches():
    assert len(next(iter(module("digits", batch_size=8).test_dataloader())).labels) == EVAL_BATCH_SIZE


def test_a_training_set_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"recipe\.batch_size=500: the training set has only 462 images"):
        module("fake", batch_size=500)
    assert len(module("fake", batch_size=462).train_dataloader()) == 1


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_wrongly_labelled_training_images_are_not_augmented(loader):
    data = module("fake", noise=symmetric(rate=0.5), loader=loader, workers=0)
    wrong = data.train_labels != data.true_labels
    batches = list(data.wrong_dataloader())
    assert data.wrong_size == wrong.sum() == sum(len(batch.labels) for batch in batches)
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert np.array_equal(index, data.train_index[wrong])
    assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), data.train_labels[wrong])
    assert np.array_equal(data.wrong_true, data.true_labels[wrong])
    train, _ = sources.load(data.dataset, data.sizes)
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, train.images[index] / 255, atol=1e-6)


def test_wrongly_labelled_images_up_to_a_limit_are_spread_over_the_training_set(monkeypatch):
    monkeypatch.setattr("kdbench.data.module.WRONG_LIMIT", 10)
    data = module("fake", noise=symmetric(rate=0.5))
    index = torch.cat([batch.index for batch in data.wrong_dataloader()]).numpy()
    wrong = data.train_index[data.train_labels != data.true_labels]
    assert len(index) == data.wrong_size == 10 < len(wrong)
    assert set(index) <= set(wrong)
    assert {index[0], index[-1]} == {wrong[0], wrong[-1]}


def test_without_noise_no_label_is_wrong():
    data = module("fake")
    assert (data.wrong_size, len(data.wrong_true), data.wrong_dataloader()) == (0, 0, [])

import hashlib

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tests.helpers.data import group, module, same

from kdbench.data import sources
from kdbench.data.batch import Batch
from kdbench.data.module import EVAL_BATCH_SIZE, DataModule
from kdbench.data.resident import ResidentLoader
from kdbench.data.streaming import StreamingLoader
from kdbench.errors import UserError


class Linear(pl.LightningModule):
    """Counts what it is given."""

    def __init__(self, data):
        super().__init__()
        self.net = torch.nn.Linear(data.in_chans * data.image_size**2, data.num_classes)
        self.epochs: list[list[int]] = []
        self.seen = {"val": 0, "test": 0}

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, step):
        assert isinstance(batch, Batch)
        self.epochs[-1] += batch.index.tolist()
        return torch.nn.functional.cross_entropy(self.net(batch.images.flatten(1)), batch.labels)

    def validation_step(self, batch, step):
        self.seen["val"] += len(batch.labels)

    def test_step(self, batch, step):
        self.seen["test"] += len(batch.labels)

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
def test_lightning_trains_validates_and_tests_with_it(tmp_path, loader):
    data = module("fake", loader=loader, workers=0)
    model, engine = Linear(data), trainer(tmp_path)
    engine.fit(model, datamodule=data)
    assert [len(set(e)) for e in model.epochs] == [448, 448]  # 462 less the partial batch
    assert model.epochs[0] != model.epochs[1]  # the Trainer sets the epoch by itself
    assert model.seen["val"] % 50 == 0
    assert model.seen["val"] > 0
    engine.test(model, datamodule=data, verbose=False)
    assert model.seen["test"] == 256
    alone = module("fake")  # and it is the epoch that a loop of one's own would get
    alone.set_epoch(1)
    assert torch.cat([b.index for b in alone.train_dataloader()]).tolist() == model.epochs[1]


@pytest.mark.filterwarnings("ignore")
def test_without_validation_lightning_skips_it(tmp_path):
    data = module("fake", val_fraction=0.0)
    assert data.val_size == 0
    assert data.train_size == 512
    assert data.val_dataloader() == []
    model = Linear(data)
    trainer(tmp_path, 1).fit(model, datamodule=data)
    assert model.seen["val"] == 0
    assert len(model.epochs[0]) == 512


def test_networks_are_told_their_sizes_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(sources, "load", lambda _: pytest.fail("loaded"))
    data = DataModule(group("dataset", "digits"), group("imbalance", "none"), group("noise", "none"), 64, 0)
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, 8)
    assert (data.mean, data.std) == ((0.3053,), (0.3759,))


def test_mean_and_std_are_per_channel_and_neutral_without_normalisation():
    assert module("fake").mean == (0.5, 0.5, 0.5)
    plain = module("fake", normalize=False)
    assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)
    images = next(iter(plain.test_dataloader())).images
    assert images.min() >= 0
    assert images.max() <= 1


def test_index_and_labels_lead_back_to_the_source():
    data = module("digits")
    train, test = sources.load(group("dataset", "digits"))
    for loader, source in ((data.val_dataloader(), train), (data.test_dataloader(), test)):
        for images, labels, index in loader:
            assert np.array_equal(source.labels[index], labels.numpy())
            assert np.array_equal(source.images[index], (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    held = torch.cat([b.index for b in data.val_dataloader()]).tolist()
    assert sorted([*held, *data.train_index]) == list(range(len(train.labels)))
    for _, labels, index in data.train_dataloader():
        assert np.array_equal(train.labels[index], labels.numpy())


def test_labels_hash_is_of_labels_and_positions():
    data = module("digits")
    again = hashlib.sha256(data.train_labels.astype("<i8").tobytes() + data.train_index.astype("<i8").tobytes())
    assert data.labels_hash == again.hexdigest()
    assert module("digits", split_seed=1).labels_hash != data.labels_hash


def test_a_resumed_run_sees_the_batches_of_the_unbroken_one():
    unbroken, resumed = module("digits", seed=5), module("digits", seed=5)
    loader = unbroken.train_dataloader()
    for epoch in range(3):
        unbroken.set_epoch(epoch)
        batches = list(loader)
    resumed.set_epoch(2)  # before there is a loader
    assert same(resumed.train_dataloader(), batches)
    other = module("digits", seed=6)
    other.set_epoch(2)
    assert not same(other.train_dataloader(), batches)


def test_the_loader_follows_its_key_and_the_size_of_the_data(monkeypatch):
    assert isinstance(module("fake").train_dataloader(), ResidentLoader)
    assert isinstance(module("fake", loader="streaming", workers=0).train_dataloader(), StreamingLoader)
    assert isinstance(module("fake", crop_padding=None, workers=0).train_dataloader(), StreamingLoader)
    size = (512 + 256) * 32 * 32 * 3
    for limit, resident in ((size, True), (size - 1, False)):
        monkeypatch.setattr("kdbench.data.module.RESIDENT_LIMIT", limit)
        assert module("fake").resident is resident
        assert module("fake", loader="resident").resident


def test_evaluation_takes_large_batches():
    assert len(next(iter(module("digits", batch_size=8).test_dataloader())).labels) == EVAL_BATCH_SIZE


def test_a_training_set_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"recipe\.batch_size=500: the training set has only 462 images"):
        module("fake", batch_size=500)
    assert len(module("fake", batch_size=462).train_dataloader()) == 1


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_wrongly_labelled_training_images_are_looked_at_as_they_are(loader, monkeypatch):
    noisy = {"noise": group("noise", "symmetric", rate=0.5)}
    data = module("fake", loader=loader, workers=0, **noisy)
    wrong = data.train_labels != data.true_labels
    batches = list(data.wrong_dataloader())
    assert data.wrong_size == wrong.sum() == sum(len(batch.labels) for batch in batches)
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert np.array_equal(index, data.train_index[wrong])
    assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), data.train_labels[wrong])
    assert np.array_equal(data.wrong_true, data.true_labels[wrong])
    images, _ = sources.load(data.dataset)
    shown = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(shown, images.images[index] / 255, atol=1e-6)


def test_at_most_so_many_wrong_labels_are_looked_at_spread_over_the_training_set(monkeypatch):
    monkeypatch.setattr("kdbench.data.module.WATCHED", 10)
    data = module("fake", noise=group("noise", "symmetric", rate=0.5))
    index = torch.cat([batch.index for batch in data.wrong_dataloader()]).numpy()
    wrong = data.train_index[data.train_labels != data.true_labels]
    assert len(index) == data.wrong_size == 10 < len(wrong)
    assert set(index) <= set(wrong)
    assert {index[0], index[-1]} == {wrong[0], wrong[-1]}


def test_without_noise_no_label_is_wrong():
    data = module("fake")
    assert (data.wrong_size, len(data.wrong_true), data.wrong_dataloader()) == (0, 0, [])

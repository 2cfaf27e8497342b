"""The data of one run behind Lightning's DataModule: source, imbalance, noise, split and loaders."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from kdbench.data import folder, sources, split
from kdbench.data import imbalance as class_imbalance
from kdbench.data import noise as label_noise
from kdbench.data.augmentation import Covering
from kdbench.data.batch import Batch, Images, Loader, Part, Training
from kdbench.data.changed import Change, ChangedLoader
from kdbench.data.mixing import Mixing
from kdbench.data.resident import ResidentLoader
from kdbench.data.streaming import TEST_BORDER, StreamingLoader
from kdbench.data.views import uncountable
from kdbench.errors import UserError

RESIDENT_LIMIT = 2 * 2**30  # bytes of images up to which dataset.loader=auto keeps them on the device
EVAL_BATCH_SIZE = 256  # at least: evaluation needs no gradients
WRONG_LIMIT = 5000  # wrongly labelled training images that are evaluated after every epoch, at most


class DataModule(pl.LightningDataModule):
    """Training, validation and test data of one run.

    `prepare()` (or Lightning's `prepare_data` and `setup`) loads the data. Loaders are made on request; their batches
    are on the device of the attached trainer, or on the CPU. The three groups must have passed `sources.check`,
    `imbalance.check` and `noise.check`.

    Args:
        dataset: the `dataset` group.
        imbalance: the `imbalance` group; removes training images, by true class.
        noise: the `noise` group; changes labels of the remaining images before the split, so that validation labels
            are noisy as well, unless `clean_validation`.
        sizes: as returned by `sources.check`.
        recipe: the `recipe` group: batch size and augmentation of training. Evaluation uses batches of at least
            `EVAL_BATCH_SIZE`, and images as they are.
        seed: the run's seed, for order and augmentation. Noise, subset and split have seeds of their own.

    Attributes:
        sizes: as given.
        batch_size: of training.
        num_classes, in_chans, image_size: what a network for these data needs to know. Known before loading, as are
            `mean` and `std`; everything below is known only afterwards.
        mean, std: one value per channel, for networks to normalise with; 0 and 1 with `dataset.normalize=false`.
        classes: names of the classes.
        source_size: number of images in the source's training set.
        train_size, val_size, test_size: number of samples in each part.
        wrong_size, wrong_true: number of images in `wrong_dataloader`, and their true labels, (wrong_size,) int64.
        train_index, train_labels, true_labels: (train_size,) int64 of the training part: position in the source's
            training set, label used in training, label without noise.
        labels_hash: SHA-256 (hex) of `train_labels` and `train_index`.
        noise_record, imbalance_record: what the result says about the two: `noise.record` of the training part,
            `imbalance.record` of training and validation together.
        resident: whether the images are kept on the device.

    Raises:
        UserError: the data cannot be read, or an option turns out to be impossible for them.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        imbalance: Mapping[str, Any],
        noise: Mapping[str, Any],
        sizes: sources.Sizes,
        recipe: Mapping[str, Any],
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.imbalance, self.noise = dataset, imbalance, noise
        self.recipe, self.batch_size, self.seed = recipe, recipe["batch_size"], seed
        self._epoch = 0
        self._parts: dict[str, Part] = {}
        self._train_loader: Loader | None = None
        self._resident: dict[torch.device, ResidentLoader] = {}  # of training; twins have the same
        self.sizes = sizes
        self.num_classes, self.in_chans, self.image_size, self.mean, self.std = sizes

    def prepare(self) -> "DataModule":
        """Download if allowed, then load; needs no trainer and no device.

        Returns:
            Itself.
        """
        self.prepare_data()
        self.setup()
        return self

    def prepare_data(self) -> None:
        """Download missing data, only with `dataset.download=true`."""
        if self.dataset["download"]:
            sources.download(self.dataset)

    def setup(self, stage: str | None = None) -> None:
        """Load the source, apply imbalance and noise, and split; only once, for all stages."""
        if self._parts:
            return
        train, test = sources.load(self.dataset, self.sizes)
        self.classes, self.source_size = train.classes, len(train.labels)
        index = class_imbalance.subset(train.labels, self.imbalance, self.num_classes)
        true = train.labels[index]
        labels = label_noise.corrupt(true, self.num_classes, self.noise, self._noise_source(train, index))
        # by true class, so that the same images are held out whatever the noise
        fit, held_out = split.stratified(true, self.dataset["val_fraction"], self.dataset["split_seed"])
        if len(fit) < self.batch_size:
            raise UserError(f"recipe.batch_size={self.batch_size}: the training set has only {len(fit)} images")

        val_labels = true if self.noise["clean_validation"] else labels
        wrong = fit[labels[fit] != true[fit]]
        wrong = wrong[np.linspace(0, len(wrong) - 1, min(len(wrong), WRONG_LIMIT)).astype(int)]
        self._parts = {
            "train": Part(train.images[index[fit]], labels[fit], index[fit]),
            "val": Part(train.images[index[held_out]], val_labels[held_out], index[held_out]),
            "test": Part(test.images, test.labels, np.arange(len(test.labels))),
            "wrong": Part(train.images[index[wrong]], labels[wrong], index[wrong]),
        }
        lengths = (len(part.labels) for part in self._parts.values())
        self.train_size, self.val_size, self.test_size, self.wrong_size = lengths
        self.wrong_true = true[wrong]
        self.train_index, self.train_labels, self.true_labels = index[fit], labels[fit], true[fit]
        self.labels_hash = hashlib.sha256(self.train_labels.tobytes() + self.train_index.tobytes()).hexdigest()
        self.noise_record = label_noise.record(self.noise, self.true_labels, self.train_labels, self.num_classes)
        self.imbalance_record = class_imbalance.record(self.imbalance, true, self.num_classes)

        self.resident = self._fits_on_device()
        if self.resident and train.images.ndim == 1:
            size, channels = self.image_size, self.in_chans
            self._parts = {
                name: part._replace(images=folder.decode(part.images, size, channels))
                for name, part in self._parts.items()
            }

    def _noise_source(self, train: Images, index: np.ndarray) -> label_noise.Source:
        def pixels(positions: np.ndarray) -> np.ndarray:
            images = train.images[index[positions]]
            if images.ndim == 1:
                images = folder.decode(images, self.image_size, self.in_chans)
            # always normalised, so that the labels do not depend on dataset.normalize
            mean, std = map(np.array, sources.normalisation({**self.dataset, "normalize": True}))
            return ((images / 255 - mean) / std).reshape(len(images), -1)

        return label_noise.Source(self.dataset["source"], train.classes, train.labels, index, pixels)

    def _fits_on_device(self) -> bool:
        if self.dataset["loader"] != "auto":
            return self.dataset["loader"] == "resident"
        images = self.train_size + self.val_size + self.test_size
        small = images * self.image_size**2 * self.in_chans <= RESIDENT_LIMIT
        return small and self.dataset["crop_padding"] is not None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the training loader uses next.

        A Trainer does this by itself; a hand-written training loop calls it before each epoch.
        """
        self._epoch = epoch
        if self._train_loader is not None:
            self._train_loader.set_epoch(epoch)

    def train_dataloader(self) -> Loader:
        """Shuffled and augmented batches of the training part; the last partial batch is dropped."""
        loader, changes = self._loader(self._parts["train"], training=True), self._changes()
        self._train_loader = ChangedLoader(loader, changes, self.batch_size) if changes else loader
        self._train_loader.set_epoch(self._epoch)
        return self._train_loader

    def val_dataloader(self) -> Any:
        """Batches of the held-out part, in source order; an empty list if there is none, so that Lightning skips it."""
        return self._loader(self._parts["val"]) if self.val_size else []

    def test_dataloader(self) -> Loader:
        """Batches of the test set, in source order."""
        return self._loader(self._parts["test"])

    def wrong_dataloader(self) -> Any:
        """Batches of wrongly labelled training images, not augmented, with their noisy labels; or an empty list."""
        return self._loader(self._parts["wrong"]) if self.wrong_size else []

    def changed_dataloader(self, images: np.ndarray) -> Loader:
        """Batches of the test set with its images replaced.

        Args:
            images: (N, H, W, C) uint8, another version of each test image, in source order.
        """
        return self._loader(self._parts["test"]._replace(images=images))

    def twin(self) -> "DataModule":
        """The same data for another trainer, with the same images in memory."""
        twin = copy.copy(self)
        twin.trainer, twin._train_loader, twin._epoch = None, None, 0
        return twin

    @property
    def test_labels(self) -> np.ndarray:
        """(test_size,) int64."""
        return self._parts["test"].labels

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def _training(self) -> Training:
        config = self.dataset
        crop_and_flip = config["crop_padding"], config["padding_mode"], config["flip"]
        return Training(self.seed, *crop_and_flip, self.recipe["augment"])

    @property
    def views(self) -> int | None:
        """Number of different views of a training image; None where they cannot be counted."""
        return None if not self.resident or uncountable(self.dataset, self.recipe) else self._training.views

    def _changes(self) -> list[Change]:
        """What the recipe does to finished batches of training."""
        recipe, changes = self.recipe, list[Change]()
        at = self.image_size, self.seed, self._device
        if recipe["erasing"] or recipe["cutout"]:
            changes.append(Covering(recipe["erasing"], recipe["cutout"], self.mean, *at))
        if recipe["mixup"] or recipe["cutmix"]:
            changes.append(Mixing(recipe["mixup"], recipe["cutmix"], *at))
        return changes

    def _loader(self, part: Part, training: bool = False) -> Loader:
        if self.trainer is not None and self.trainer.world_size > 1:
            raise UserError(f"trainer.devices={self.trainer.world_size}: must be 1, a run uses one device")
        device, config = self._device, self.dataset
        batch_size, augmentation = max(self.batch_size, EVAL_BATCH_SIZE), None
        if training:
            batch_size = self.batch_size
            augmentation = self._training
        if self.resident and training:
            if device not in self._resident:
                self._resident[device] = ResidentLoader(part, batch_size, device, augmentation)
            return copy.copy(self._resident[device])
        if self.resident:
            return ResidentLoader(part, batch_size, device, augmentation)
        return StreamingLoader(
            part,
            self.image_size,
            self.in_chans,
            batch_size,
            device,
            augmentation,
            border=TEST_BORDER if config["crop_padding"] is None else 0.0,
            workers=config["workers"],
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch unchanged: the loaders put it on the device."""
        return batch

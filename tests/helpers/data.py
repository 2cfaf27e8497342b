"""Groups of `conf/` as plain dicts, their data checked and loaded, small image trees, and batches compared."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from kdbench.config.groups import CONF, content
from kdbench.data import imbalance as class_imbalance
from kdbench.data import noise as label_noise
from kdbench.data import sources
from kdbench.data.batch import Batch, Images, Part
from kdbench.data.module import DataModule


def group(name: str, choice: str, /, **changes: Any) -> dict[str, Any]:
    """One config group as a plain dict, with some keys changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(f"{name}/{choice}")[name]
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def symmetric(**changes: Any) -> dict[str, Any]:
    """The group `noise=symmetric`, with some keys changed."""
    return group("noise", "symmetric", **changes)


def load(dataset: Mapping[str, Any]) -> tuple[Images, Images]:
    """Training and test set of a `dataset` group, which is checked first."""
    return sources.load(dataset, sources.check(dataset))


def data_module(
    dataset: Mapping[str, Any],
    imbalance: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    **recipe: Any,
) -> DataModule:
    """A DataModule of groups that are checked first, as for a run; `recipe` changes its group; not loaded yet."""
    imbalance, noise = imbalance or group("imbalance", "none"), noise or group("noise", "none")
    sizes = sources.check(dataset)
    class_imbalance.check(imbalance, sizes.num_classes)
    label_noise.check(noise, sizes.num_classes, dataset["source"])
    recipe = {**content("recipe/crd240"), "batch_size": batch_size, **recipe}
    return DataModule(dataset, imbalance, noise, sizes, recipe, seed)


def module(
    dataset: str = "fake",
    noise: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    imbalance: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    **changes: Any,
) -> DataModule:
    """A loaded DataModule; `recipe` changes its group, and `changes` go to the data set's options."""
    dataset_group = group("dataset", dataset, **changes)
    return data_module(dataset_group, imbalance, noise, batch_size, seed, **(recipe or {})).prepare()


def part(count: int = 10, size: int = 6, channels: int = 3) -> Part:
    """Random images; labels and index identify each of them."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)
    return Part(images, np.arange(count) % 3, np.arange(count) * 10)


def plant(
    root: Path, classes: Iterable[str] = ("ant", "bee", "cat"), train: int = 8, test: int = 4, size: int = 8
) -> Path:
    """Write ROOT/{train,test}/<class>/<nnn>.png with random RGB images."""
    rng = np.random.default_rng(0)
    for role, count in (("train", train), ("test", test)):
        for name in classes:
            folder = root / role / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return root


def same(batches: Iterable[Batch], others: Iterable[Batch]) -> bool:
    """Whether two loaders give the same batches, bit for bit."""
    pairs = [(tensors(a), tensors(b)) for a, b in zip(batches, others, strict=True)]
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def tensors(batch: Batch) -> list[torch.Tensor]:
    """All tensors of a batch, with those of its partners."""
    return [*batch[:3], *(batch.mixed or ())]

"""Configs as the entry point would compose them, small image trees, and batches compared."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from kdbench.data.batch import Batch, Part
from kdbench.data.module import DataModule

CONF = Path(__file__).resolve().parents[2] / "conf"


def group(name: str, choice: str, /, **changes: Any) -> dict[str, Any]:
    """One config group as a plain dict, with some keys changed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(f"{name}/{choice}")[name]
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def module(
    dataset: str = "fake",
    noise: dict | None = None,
    batch_size: int = 64,
    seed: int = 0,
    imbalance: dict | None = None,
    **changes: Any,
) -> DataModule:
    """A loaded DataModule; ``changes`` go to the data set's options."""
    noise = noise or group("noise", "none")
    config = group("dataset", dataset, **changes)
    return DataModule(config, imbalance or group("imbalance", "none"), noise, batch_size, seed).prepare()


def symmetric(**changes: Any) -> dict[str, Any]:
    return group("noise", "symmetric", **changes)


def part(count: int = 10, size: int = 6, channels: int = 3) -> Part:
    """Random images whose labels and index tell which one they are."""
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


def same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    """Whether two runs over loaders gave the same batches, bit for bit."""
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))

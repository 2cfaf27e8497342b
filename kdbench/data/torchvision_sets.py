"""Data sets that torchvision reads and, on request, downloads; and TinyImageNet's archive."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from kdbench.data.batch import Images

READERS = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "svhn": datasets.SVHN,
    "stl10": datasets.STL10,
    "mnist": datasets.MNIST,
    "fashion_mnist": datasets.FashionMNIST,
}
TINYIMAGENET = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")


def load(source: str, root: Path, download: bool = False) -> tuple[Images, Images]:
    """Training and test set of a torchvision data set.

    Args:
        source: a key of `READERS`.
        root: the folder that torchvision calls root.
        download: download what is missing.

    Returns:
        Images (N, H, W, C) uint8.

    Raises:
        RuntimeError: files are missing or damaged; the message is torchvision's.
        OSError: the network or the disk fails.
    """
    return _load(source, root, True, download), _load(source, root, False, download)


def _load(source: str, root: Path, train: bool, download: bool) -> Images:
    if source in ("svhn", "stl10"):
        data = READERS[source](root, split="train" if train else "test", download=download)
        images, labels = data.data.transpose(0, 2, 3, 1), data.labels
    else:
        data = READERS[source](root, train=train, download=download)
        images, labels = np.asarray(data.data), data.targets
    if images.ndim == 3:  # grey
        images = images[..., None]
    classes = tuple(getattr(data, "classes", "0123456789"))  # the classes of SVHN are digits, without names
    return Images(images, np.asarray(labels, dtype=np.int64), classes)


def download(source: str, root: Path) -> None:
    """Download a data set into `root`, unless it is there already.

    Raises:
        RuntimeError: the downloaded files are damaged.
        OSError: the network or the disk fails.
    """
    if source == "tinyimagenet":
        url, md5 = TINYIMAGENET
        name = "tiny-imagenet-200"
        if not (root / name).is_dir():
            with TemporaryDirectory(dir=root) as unpacked:  # an incomplete data set never has the final name
                download_and_extract_archive(url, str(root), unpacked, md5=md5)
                (Path(unpacked) / name).rename(root / name)
    else:
        load(source, root, download=True)

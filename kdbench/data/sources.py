"""The catalogue of data sets: is it there, what is it, load it. Torch-free until something is loaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kdbench.data import embedded, folder, synmnist, synthetic
from kdbench.data.batch import Images
from kdbench.errors import UserError

# sources that can be downloaded, and what then lies in the data root
ARCHIVES = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "train_32x32.mat",
    "stl10": "stl10_binary",
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "tinyimagenet": "tiny-imagenet-200",
}
# sources that are trees of image files, and where the tree lies in the data root, if not in the root itself
TREES = {"imagefolder": ".", "imagenet": "imagenet", "tinyimagenet": "tiny-imagenet-200"}
SOURCES = tuple(sorted({*embedded.FILES, "fake", "synmnist", *ARCHIVES, *TREES}))


class Sizes(NamedTuple):
    """What a network needs to know of its data.

    Attributes:
        num_classes: number of classes.
        in_chans: channels of the images.
        image_size: height and width of the images, in pixels.
        mean: of the images in [0, 1], by channel, for networks to normalise with.
        std: of the images in [0, 1], by channel, for networks to normalise with.
    """

    num_classes: int
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def data_root(dataset: dict) -> Path:
    """The folder of the data sets: ``dataset.root``, else $KDBENCH_DATA, else ~/.cache/kdbench/data."""
    return Path(dataset["root"] or os.environ.get("KDBENCH_DATA") or "~/.cache/kdbench/data").expanduser()


def check(dataset: dict) -> Sizes:
    """Find the data and check that the options fit each other, before any work; at most one image is read.

    Args:
        dataset: The ``dataset`` group.

    Returns:
        What networks need to know of the data.

    Raises:
        UserError: If the data cannot be found or an option is impossible.
    """
    num_classes = _check(dataset)
    mean, std = normalisation(dataset)
    return Sizes(num_classes, dataset["channels"], image_size(dataset), mean, std)


def _check(dataset: dict) -> int:
    """As `check`; returns the number of classes."""
    source = dataset["source"]
    if source not in SOURCES:
        raise UserError(f"dataset.source={source}: must be one of {', '.join(SOURCES)}")
    _check_options(dataset)
    if source == "synmnist" and not dataset["tree"]:
        _check_synmnist(dataset)
    if source in ARCHIVES and not dataset["tree"]:
        root = data_root(dataset)
        if not (root / ARCHIVES[source]).exists() and not (source in TREES and (root / "train").is_dir()):
            if dataset["download"]:
                return dataset["num_classes"]
            raise UserError(
                f"dataset={dataset['name']}: no {ARCHIVES[source]} in {root}; dataset.download=true fetches "
                "it, dataset.root=PATH (or the environment variable KDBENCH_DATA) says where it is"
            )
    with _named_errors(dataset, "cannot be read from"):
        tree = _tree(dataset)
    if tree is None:
        return dataset["num_classes"]
    _check_classes(dataset, tree.classes)
    return len(tree.classes)


@contextmanager
def _named_errors(dataset: dict, what: str) -> Iterator[None]:
    """Turn errors of disk, network and torchvision into one line that names data set and place."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        place = dataset["tree"] or data_root(dataset)
        reason = str(error).replace("download=True", "dataset.download=true")
        raise UserError(f"dataset={dataset['name']}: {what} {place}: {reason}") from error


def _check_options(dataset: dict) -> None:
    padding, channels = dataset["crop_padding"], dataset["channels"]
    if padding is None and dataset["loader"] == "resident":
        raise UserError("dataset.crop_padding=null: a random resized crop needs dataset.loader=streaming")
    if padding is not None and dataset["padding_mode"] == "reflect" and padding >= (size := image_size(dataset)):
        raise UserError(f"dataset.crop_padding={padding}: must be < dataset.image_size={size} to reflect")
    for key in ("mean", "std"):
        values = dataset[key]
        if len(values) not in (1, channels):
            raise UserError(f"dataset.{key}={values}: must have 1 or dataset.channels={channels} values")


def _check_synmnist(dataset: dict) -> None:
    size, num_classes = dataset["image_size"], dataset["num_classes"]
    count = synmnist.length(num_classes)
    if size < (least := count * synmnist.MIN_CELL):
        shown = "1 digit needs" if count == 1 else f"{count} digits side by side need"
        raise UserError(
            f"dataset.image_size={size}: {shown} at least {least} pixels (dataset.num_classes={num_classes})"
        )
    for key in ("num_train", "num_test"):
        if dataset[key] < num_classes:
            raise UserError(f"dataset.{key}={dataset[key]}: must be >= dataset.num_classes={num_classes}")
    place, root = ARCHIVES["mnist"], data_root(dataset)
    if dataset["digits"] == "mnist" and not (root / place).exists():
        raise UserError(
            f"dataset.digits=mnist: no {place} in {root}; a run with dataset=mnist dataset.download=true fetches it, "
            "dataset.root=PATH (or the environment variable KDBENCH_DATA) says where it is"
        )


def _check_classes(dataset: dict, classes: tuple[str, ...]) -> None:
    wanted = dataset["num_classes"]
    if wanted not in (None, len(classes)):
        raise UserError(f"dataset.num_classes={wanted}: {dataset['name']} has {len(classes)} classes here")


def _tree(dataset: dict) -> folder.Tree | None:
    """The tree of image files that the data are read from, or None."""
    source = dataset["source"]
    if dataset["tree"]:
        return folder.find(dataset["tree"], "dataset.tree")
    if source not in TREES:
        return None
    if source == "imagefolder" and not dataset["root"]:
        raise UserError("dataset.root=null: give the folder with train/<class>/ and test/<class>/")
    root = data_root(dataset)
    inner = root / TREES[source]
    return folder.find(inner if inner.is_dir() else root, "dataset.root")


def image_size(dataset: dict) -> int:
    """Side in pixels of the images that networks get: ``dataset.image_size``, else that of a tree's first image.

    Args:
        dataset: The ``dataset`` group.

    Raises:
        UserError: If it is not given and the first image is not square, or cannot be read.
    """
    if dataset["image_size"] is not None:
        return dataset["image_size"]
    tree = _tree(dataset)
    assert tree is not None  # only trees may leave it out
    return folder.first_side(tree)


def normalisation(dataset: dict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that networks take from their images, one value a channel.

    Args:
        dataset: The ``dataset`` group.

    Returns:
        ``dataset.mean`` and ``dataset.std``; 0 and 1 with ``dataset.normalize=false``.
    """

    def by_channel(values: list[float]) -> tuple[float, ...]:
        return tuple(float(v) for v in (values * dataset["channels"] if len(values) == 1 else values))

    if not dataset["normalize"]:
        return by_channel([0.0]), by_channel([1.0])
    return by_channel(dataset["mean"]), by_channel(dataset["std"])


def verify(dataset: dict) -> None:
    """Look at every image of a user's own tree, before anything slow begins.

    Args:
        dataset: The ``dataset`` group.

    Raises:
        UserError: If one cannot be read.
    """
    if tree := _own_tree(dataset):
        folder.verify(tree)


def fingerprint(dataset: dict) -> str | None:
    """What identifies the content of a user's own tree, whatever its path.

    Args:
        dataset: The ``dataset`` group.

    Returns:
        16 hex digits over the names and sizes of its images; None for a data set that its name identifies.

    Raises:
        UserError: If there is no such tree.
    """
    tree = _own_tree(dataset)
    return folder.digest(tree) if tree else None


def _own_tree(dataset: dict) -> folder.Tree | None:
    """The tree that only its path names, not the data set's name."""
    if not dataset["tree"] and dataset["source"] != "imagefolder":
        return None
    with _named_errors(dataset, "cannot be read from"):
        return _tree(dataset)


def download(dataset: dict) -> None:
    """Fetch a data set into the data root, unless it is there; does nothing for those without an archive.

    Raises:
        UserError: If the network or the disk fails.
    """
    if dataset["source"] not in ARCHIVES or dataset["tree"]:
        return
    from filelock import FileLock

    from kdbench.data import torchvision_sets

    root = data_root(dataset)
    with _named_errors(dataset, "could not be fetched into"):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{dataset['source']}.lock"):  # several runs may start at once
            torchvision_sets.download(dataset["source"], root)


def load(dataset: dict, sizes: Sizes) -> tuple[Images, Images]:
    """Load the training and test set of a data set; never downloads.

    Args:
        dataset: The ``dataset`` group, checked.
        sizes: What `check` found.

    Returns:
        Training and test set; for trees the file names only.

    Raises:
        UserError: If the data are missing or damaged, or are not what the config says.
    """
    with _named_errors(dataset, "cannot be read from"):
        train, test = _load(dataset)
    _check_classes(dataset, train.classes)
    if train.images.ndim == 4:
        side, _, depth = train.images.shape[1:]
        for key, wanted, there in (("image_size", sizes.image_size, side), ("channels", sizes.in_chans, depth)):
            if wanted != there:
                raise UserError(f"dataset.{key}={wanted}: {dataset['name']} has {there}")
    return train, test


def _load(dataset: dict) -> tuple[Images, Images]:
    source, tree = dataset["source"], _tree(dataset)
    if tree is not None:
        train, test = (folder.listing(part, tree.classes) for part in (tree.train, tree.test))
        return Images(*train, tree.classes), Images(*test, tree.classes)
    if source in embedded.FILES:
        return embedded.load(source)
    if source == "fake":
        keys: tuple[str, ...] = ("num_train", "num_test", "num_classes", "image_size", "channels", "seed")
        return synthetic.load(*(dataset[key] for key in keys))
    if source == "synmnist":
        keys = ("num_train", "num_test", "num_classes", "image_size", "channels", "seed", "map_seed", "digits")
        numbers, held = synmnist.load(*(dataset[key] for key in keys), data_root(dataset))
        # loaders take a test set as it is, and torch warns of read-only arrays
        return numbers, held._replace(images=held.images.copy(), labels=held.labels.copy())
    from kdbench.data import torchvision_sets

    return torchvision_sets.load(source, data_root(dataset))

"""The known data sets: finding, checking and loading them. Imports no torch until something is loaded."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.data import embedded, folder, outside, synmnist, synthetic
from kdbench.data.batch import Images
from kdbench.errors import UserError

# sources that can be downloaded -> what is then in the data root
ARCHIVES = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "train_32x32.mat",
    "stl10": "stl10_binary",
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "tinyimagenet": "tiny-imagenet-200",
}
# sources that are trees of image files -> folder of the tree in the data root, if it is not the root itself
TREES = {"imagefolder": ".", "imagenet": "imagenet", "tinyimagenet": "tiny-imagenet-200"}
SOURCES = tuple(sorted({*embedded.FILES, "fake", "synmnist", *ARCHIVES, *TREES, *outside.SOURCES}))


class Sizes(NamedTuple):
    """What a network needs to know about its data.

    Attributes:
        num_classes: number of classes.
        in_chans: number of channels of the images.
        image_size: height and width of the images, in pixels.
        mean: mean of the pixels in [0, 1], one value per channel, for networks to normalise with.
        std: standard deviation of the pixels in [0, 1], one value per channel, likewise.
    """

    num_classes: int
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def data_root(dataset: Mapping[str, Any]) -> Path:
    """The folder of the data sets: `dataset.root`, else $KDBENCH_DATA, else ~/.cache/kdbench/data."""
    return Path(dataset["root"] or os.environ.get("KDBENCH_DATA") or "~/.cache/kdbench/data").expanduser()


def check(dataset: Mapping[str, Any]) -> Sizes:
    """Find the data and check that the options are compatible, before any work.

    At most one image is read, except of data sets from outside, whose mean and standard deviation may have to be
    computed.

    Args:
        dataset: the `dataset` group.

    Returns:
        What networks need to know about the data.

    Raises:
        UserError: the data cannot be found, or an option is impossible.
    """
    num_classes = _check(dataset)
    mean, std = normalisation(dataset)
    return Sizes(num_classes, channels(dataset), image_size(dataset), mean, std)


def _check(dataset: Mapping[str, Any]) -> int:
    """Do all that `check` does, but return only the number of classes."""
    source = dataset["source"]
    if source not in SOURCES:
        raise UserError(f"dataset.source={source}: must be one of {', '.join(SOURCES)}")
    _check_options(dataset)
    if source in outside.SOURCES:
        num_classes = outside.describe(dataset).num_classes
        _check_num_classes(dataset, num_classes)
        return num_classes
    if source == "synmnist" and not dataset["tree"]:
        _check_synmnist(dataset)
    if source in ARCHIVES and not dataset["tree"]:
        root = data_root(dataset)
        if not (root / ARCHIVES[source]).exists() and not (source in TREES and (root / "train").is_dir()):
            if dataset["download"]:
                return dataset["num_classes"]
            raise UserError(
                f"dataset={dataset['name']}: there is no {ARCHIVES[source]} in {root}; dataset.download=true downloads "
                "it, dataset.root=PATH (or the environment variable KDBENCH_DATA) points to an existing copy"
            )
    with _named_errors(dataset, "cannot be read from"):
        tree = _tree(dataset)
    if tree is None:
        return dataset["num_classes"]
    _check_num_classes(dataset, len(tree.classes))
    return len(tree.classes)


@contextmanager
def _named_errors(dataset: Mapping[str, Any], failure: str) -> Iterator[None]:
    """Turn errors of disk, network and torchvision into one line that names the data set and its place."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        place = dataset["tree"] or data_root(dataset)
        reason = str(error).replace("download=True", "dataset.download=true")
        raise UserError(f"dataset={dataset['name']}: {failure} {place}: {reason}") from error


def _check_options(dataset: Mapping[str, Any]) -> None:
    padding = dataset["crop_padding"]
    if padding is None and dataset["loader"] == "resident":
        raise UserError("dataset.crop_padding=null: a random resized crop needs dataset.loader=streaming")
    if padding is not None and dataset["padding_mode"] == "reflect" and padding >= (size := image_size(dataset)):
        raise UserError(
            f"dataset.crop_padding={padding}: must be < dataset.image_size={size} with dataset.padding_mode=reflect"
        )
    for key in ("mean", "std"):
        values = dataset[key]
        if values is not None and len(values) not in (1, count := channels(dataset)):
            raise UserError(f"dataset.{key}={values}: must have 1 or dataset.channels={count} values")


def _check_synmnist(dataset: Mapping[str, Any]) -> None:
    size, num_classes = dataset["image_size"], dataset["num_classes"]
    count = synmnist.length(num_classes)
    if size < (minimum := count * synmnist.MIN_CELL):
        need = "1 digit needs" if count == 1 else f"{count} digits side by side need"
        raise UserError(
            f"dataset.image_size={size}: {need} at least {minimum} pixels (dataset.num_classes={num_classes})"
        )
    for key in ("num_train", "num_test"):
        if dataset[key] < num_classes:
            raise UserError(f"dataset.{key}={dataset[key]}: must be >= dataset.num_classes={num_classes}")
    place, root = ARCHIVES["mnist"], data_root(dataset)
    if dataset["digits"] == "mnist" and not (root / place).exists():
        raise UserError(
            f"dataset.digits=mnist: there is no {place} in {root}; a run with dataset=mnist dataset.download=true "
            "downloads it, dataset.root=PATH (or the environment variable KDBENCH_DATA) points to an existing copy"
        )


def _check_num_classes(dataset: Mapping[str, Any], count: int) -> None:
    expected = dataset["num_classes"]
    if expected not in (None, count):
        raise UserError(f"dataset.num_classes={expected}: {dataset['name']} has {count} classes here")


def _tree(dataset: Mapping[str, Any]) -> folder.Tree | None:
    """The tree of image files that the data are read from; None for other sources."""
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


def image_size(dataset: Mapping[str, Any]) -> int:
    """Side in pixels of the images that networks see: `dataset.image_size`, else that of the data.

    Args:
        dataset: the `dataset` group.

    Raises:
        UserError: it is not given, and the first image of a tree is not square or cannot be read.
    """
    if dataset["image_size"] is not None:
        return dataset["image_size"]
    if dataset["source"] in outside.SOURCES:
        return outside.describe(dataset).image_size
    tree = _tree(dataset)
    assert tree is not None  # no other data set may leave the size out
    return folder.first_side(tree)


def channels(dataset: Mapping[str, Any]) -> int:
    """Channels of the images: `dataset.channels`, else those of the data.

    Args:
        dataset: the `dataset` group.
    """
    return outside.describe(dataset).channels if dataset["channels"] is None else dataset["channels"]


def normalisation(dataset: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that networks normalise with, one value per channel.

    Args:
        dataset: the `dataset` group.

    Returns:
        `dataset.mean` and `dataset.std`, or those of the training images where they are null (of data sets from
        outside only); 0 and 1 with `dataset.normalize=false`.
    """
    count = channels(dataset)

    def by_channel(values: list[float]) -> tuple[float, ...]:
        return tuple(float(v) for v in (values * count if len(values) == 1 else values))

    if not dataset["normalize"]:
        return by_channel([0.0]), by_channel([1.0])
    mean, std = dataset["mean"], dataset["std"]
    if mean is None or std is None:
        computed = outside.statistics(dataset)
        mean, std = (given or own for given, own in zip((mean, std), computed, strict=True))
    return by_channel(mean), by_channel(std)


def verify(dataset: Mapping[str, Any]) -> None:
    """Read every image of a user's own data, before anything slow begins.

    Args:
        dataset: the `dataset` group.

    Raises:
        UserError: an image cannot be read.
    """
    if dataset["source"] in outside.SOURCES:
        outside.load(dataset)
    elif tree := _user_tree(dataset):
        folder.verify(tree)


def fingerprint(dataset: Mapping[str, Any]) -> str | None:
    """What identifies the content of a user's own data, whatever their path.

    Args:
        dataset: the `dataset` group.

    Returns:
        16 hex digits of a hash of the whole content, and for a tree of the names and classes of its images; None for a
        data set that its name identifies.

    Raises:
        UserError: there are no such data, or they cannot be read.
    """
    if dataset["source"] in outside.SOURCES:
        return outside.fingerprint(dataset)
    tree = _user_tree(dataset)
    return folder.digest(tree) if tree else None


def _user_tree(dataset: Mapping[str, Any]) -> folder.Tree | None:
    """The tree of a data set that its name does not identify; None for all others."""
    if not dataset["tree"] and dataset["source"] != "imagefolder":
        return None
    with _named_errors(dataset, "cannot be read from"):
        return _tree(dataset)


def download(dataset: Mapping[str, Any]) -> None:
    """Download a data set into the data root, unless it is there; do nothing for sources without an archive.

    Args:
        dataset: the `dataset` group.

    Raises:
        UserError: the network or the disk fails.
    """
    if dataset["source"] not in ARCHIVES or dataset["tree"]:
        return
    from filelock import FileLock

    from kdbench.data import torchvision_sets

    root = data_root(dataset)
    with _named_errors(dataset, "could not be downloaded into"):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{dataset['source']}.lock"):  # several runs may start at the same time
            torchvision_sets.download(dataset["source"], root)


def load(dataset: Mapping[str, Any], sizes: Sizes) -> tuple[Images, Images]:
    """Load the training and test set of a data set; never downloads.

    Args:
        dataset: the `dataset` group, checked.
        sizes: as returned by `check`.

    Returns:
        Training and test set; for trees, file names instead of images.

    Raises:
        UserError: the data are missing or damaged, or differ from what the configuration says.
    """
    with _named_errors(dataset, "cannot be read from"):
        train, test = _load(dataset)
    _check_num_classes(dataset, len(train.classes))
    if train.images.ndim == 4:
        side, _, depth = train.images.shape[1:]
        for key, expected, actual in (("image_size", sizes.image_size, side), ("channels", sizes.in_chans, depth)):
            if expected != actual:
                raise UserError(f"dataset.{key}={expected}: {dataset['name']} has {actual}")
    return train, test


def _load(dataset: Mapping[str, Any]) -> tuple[Images, Images]:
    if dataset["source"] in outside.SOURCES:
        return outside.load(dataset)
    source, tree = dataset["source"], _tree(dataset)
    if tree is not None:
        names, labels = folder.listing(tree.train, tree.classes)
        test_names, test_labels = folder.listing(tree.test, tree.classes)
        return Images(names, labels, tree.classes), Images(test_names, test_labels, tree.classes)
    if source in embedded.FILES:
        return embedded.load(source)
    if source == "fake":
        keys: tuple[str, ...] = ("num_train", "num_test", "num_classes", "image_size", "channels", "seed")
        return synthetic.load(*(dataset[key] for key in keys))
    if source == "synmnist":
        keys = ("num_train", "num_test", "num_classes", "image_size", "channels", "seed", "map_seed", "digits")
        train, test = synmnist.load(*(dataset[key] for key in keys), data_root(dataset))
        # loaders use the arrays of a test set as they are, and torch warns about read-only ones
        return train, test._replace(images=test.images.copy(), labels=test.labels.copy())
    from kdbench.data import torchvision_sets

    return torchvision_sets.load(source, data_root(dataset))

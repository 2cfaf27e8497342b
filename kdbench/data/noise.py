"""Label noise of the training set. The test set is never touched."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdbench.data import label_files
from kdbench.data.streams import derive
from kdbench.errors import UserError
from kdbench.files import digest

# kind -> keys of its own
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "symmetric": ("include_true",),
    "pairflip": (),
    "asymmetric": ("matrix",),
    "instance": (),
    "human": ("path", "annotation"),
    "file": ("path",),
}
GIVEN = ("human", "file")  # their labels are given, so that no rate can be chosen
INSTANCE_SD = 0.1  # of the flip rates of single images (Xia et al. 2020)
MATRIX_LIMIT = 100  # classes up to which result.json holds the transition matrix

# Patrini et al. 2017: true class -> label
CIFAR10_MAP = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
# Krizhevsky 2009: the superclasses of CIFAR-100, each in the order of its labels
CIFAR100_SUPERCLASSES = """
beaver dolphin otter seal whale
aquarium_fish flatfish ray shark trout
orchid poppy rose sunflower tulip
bottle bowl can cup plate
apple mushroom orange pear sweet_pepper
clock keyboard lamp telephone television
bed chair couch table wardrobe
bee beetle butterfly caterpillar cockroach
bear leopard lion tiger wolf
bridge castle house road skyscraper
cloud forest mountain plain sea
camel cattle chimpanzee elephant kangaroo
fox porcupine possum raccoon skunk
crab lobster snail spider worm
baby boy girl man woman
crocodile dinosaur lizard snake turtle
hamster mouse rabbit shrew squirrel
maple_tree oak_tree palm_tree pine_tree willow_tree
bicycle bus motorcycle pickup_truck train
lawn_mower rocket streetcar tank tractor
"""
_CIRCLES = [line.split() for line in CIFAR100_SUPERCLASSES.split("\n") if line]
# reader of the data set -> its map
MAPS = {
    "cifar10": CIFAR10_MAP,
    "cifar100": {name: circle[(i + 1) % len(circle)] for circle in _CIRCLES for i, name in enumerate(circle)},
}


class Source(NamedTuple):
    """What some kinds of noise need beyond the labels.

    Attributes:
        reader: ``dataset.source``.
        classes: Names of the classes.
        labels: (M,) int64, true, of the source's whole training set.
        index: (N,) int64, positions in it of the samples in question.
        pixels: Function from (n,) positions among those N to (n, F) float64, normalised images, flattened.
    """

    reader: str
    classes: tuple[str, ...]
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    pixels: Callable[[np.ndarray], np.ndarray]


def check(noise: dict, num_classes: int | None = None, reader: str | None = None) -> None:
    """Refuse what cannot be, as far as that can be known without the data; reads the file that ``noise`` names.

    Args:
        noise: The ``noise`` group.
        num_classes: K, where it is known.
        reader: ``dataset.source``, where it is known.

    Raises:
        UserError: If the kind does not exist, a rate is out of range or without a kind, or a file is missing or not
            what it should be.
    """
    name, rate = noise["name"], noise["rate"]
    if name not in KINDS:
        raise UserError(f"noise.name={name}: must be one of {', '.join(KINDS)}")
    if missing := [key for key in KINDS[name] if key not in noise]:
        raise UserError(f"noise.name={name}: has no noise.{missing[0]}; choose it with noise={name}")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"noise.rate={rate}: must be in [0, 1]")
    if name == "none" and rate != 0:
        shown = "null" if rate is None else rate
        raise UserError(f"noise.rate={shown} with noise=none: choose the kind of noise, e.g. noise=symmetric")
    given = name in GIVEN or bool(noise.get("matrix"))
    if given and rate is not None:
        what = "matrix" if noise.get("matrix") else "labels"
        raise UserError(f"noise.rate={rate} with noise={name}: the {what} given decide the rate; noise.rate=null")
    if not given and rate is None:
        raise UserError(f"noise.rate=null with noise={name}: must be in [0, 1]")
    if name in GIVEN and not noise["path"]:
        raise UserError(f"noise.path=null with noise={name}: give the file of the labels")
    if name == "human":
        if noise["annotation"] not in label_files.ANNOTATIONS:
            known = ", ".join(label_files.ANNOTATIONS)
            raise UserError(f"noise.annotation={noise['annotation']}: must be one of {known}")
        label_files.human(noise["path"], noise["annotation"], num_classes)
    if name == "file":
        label_files.listed(noise["path"], num_classes)
    if name == "asymmetric" and noise["matrix"]:
        label_files.matrix(noise["matrix"], num_classes)
    elif name == "asymmetric" and reader is not None and reader not in MAPS:
        raise UserError(
            f"noise.matrix=null: only {', '.join(MAPS)} have a map of their own; give the K x K transition matrix of "
            f"dataset.source={reader}, .npy or .csv"
        )


def fingerprint(noise: dict) -> str | None:
    """What identifies the content of the file that the noise is read from, whatever its path.

    Args:
        noise: The ``noise`` group.

    Returns:
        16 hex digits of its SHA-256; None for noise that its options identify.

    Raises:
        UserError: If it cannot be read.
    """
    for key in ("path", "matrix"):
        if path := noise.get(key):
            with label_files.named_errors(f"noise.{key}", path):
                return digest(Path(path))[:16]
    return None


def corrupt(labels: np.ndarray, num_classes: int, noise: dict, source: Source | None = None) -> np.ndarray:
    """Labels with noise: each sample independently, with some probability, gets another label.

    ``symmetric``: any label with the same chance, over the other K-1 classes (Han et al., Co-teaching, NeurIPS 2018,
    arXiv 1804.06872: the effective rate is ``rate``) or, with ``include_true``, over all K (Zhang et al., ICLR 2017,
    arXiv 1611.03530, and Sarfraz et al., arXiv 2007.01922; Li et al., DivideMix, ICLR 2020, arXiv 2002.07394, though
    there exactly ``rate * N`` samples are drawn): the effective rate is ``rate * (K-1)/K``.

    ``pairflip``: the next class, i+1 mod K (Co-teaching).

    ``asymmetric``: a class that looks alike (Patrini et al., CVPR 2017, arXiv 1609.03683): on CIFAR-10 truck becomes
    automobile, bird airplane, deer horse, and cat and dog each other, the other five stay; on CIFAR-100 the next class
    of the same superclass, the last becoming the first; or by a given transition matrix.

    ``instance``: by what the image shows (Xia et al., NeurIPS 2020, arXiv 2006.07836): the chance that an image's label
    changes is drawn from a normal distribution around ``rate``, truncated to [0, 1] (so that the effective rate differs
    near both ends; ``rate=0`` changes nothing), and the softmax of a random projection of its pixels, another
    for each true class, says to what.

    ``human``, ``file``: as listed in a file.

    All of it depends on ``noise.seed`` alone, never on the run's seed, and with one seed the samples hit at a low rate
    are hit at a higher one too.

    Args:
        labels: (N,) int64, true classes in [0, K).
        num_classes: K.
        noise: The ``noise`` group.
        source: Where the samples come from; ``instance`` and ``asymmetric`` without a matrix need it, and without it
            the labels of ``human`` and ``file`` are taken to be for these N.

    Returns:
        (N,) int64, a new array.

    Raises:
        UserError: As ``check``, or if a file is for other images, or the classes are not those of the map.
    """
    check(noise, num_classes)
    name, rate = noise["name"], noise["rate"]
    if name == "none":
        return labels.copy()
    if name in GIVEN:
        return _given(labels, num_classes, noise, source)
    rng = np.random.default_rng(derive(noise["seed"], "noise"))
    hit, drawn = rng.random(len(labels)), rng.random(len(labels))
    if name == "symmetric":
        choices = num_classes if noise["include_true"] else num_classes - 1
        target = (drawn * choices).astype(np.int64)
        if not noise["include_true"]:
            target += target >= labels  # skip the true class
        return np.where(hit < rate, target, labels)
    if name == "pairflip":
        return np.where(hit < rate, (labels + 1) % num_classes, labels)
    if name == "instance":
        return _by_instance(labels, num_classes, noise, hit, drawn, source)
    if noise["matrix"]:
        return _by_matrix(labels, label_files.matrix(noise["matrix"], num_classes), hit, drawn)
    return np.where(hit < rate, _mapped(source)[labels], labels)


def _given(labels: np.ndarray, num_classes: int, noise: dict, source: Source | None) -> np.ndarray:
    all_labels, index = (labels, np.arange(len(labels))) if source is None else (source.labels, source.index)
    path, clean = noise["path"], None
    if noise["name"] == "human":
        clean, given = label_files.human(path, noise["annotation"], num_classes)
    else:
        given = label_files.listed(path, num_classes)
    if len(given) != len(all_labels):
        raise UserError(f"noise.path={path}: {len(given)} labels; must be {len(all_labels)}, one a training image")
    if clean is not None and (wrong := int((clean != all_labels).sum())):
        raise UserError(
            f"noise.path={path}: {label_files.CLEAN} differs from the data set's own labels in {wrong} of {len(clean)} "
            f"images, first at index {(clean != all_labels).argmax()}; the images must be in the order of the data set"
        )
    return given[index]


def _mapped(source: Source | None) -> np.ndarray:
    """(K,) int64: what each class becomes; itself where the map does not name it."""
    assert source is not None
    moves = MAPS[source.reader]
    if absent := sorted({*moves, *moves.values()} - set(source.classes)):
        raise UserError(
            f"noise.matrix=null: the map of dataset.source={source.reader} goes by names, and no class is called "
            f"{absent[0]} here; give the K x K transition matrix, .npy or .csv"
        )
    return np.array([source.classes.index(moves.get(name, name)) for name in source.classes])


def _by_matrix(labels: np.ndarray, matrix: np.ndarray, hit: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    noisy = labels.copy()
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & (hit < 1 - matrix[label, label]))
        if not (others := np.delete(matrix[label], label)).any():
            continue  # the diagonal is one but for its last bit
        noisy[members] = _others(np.tile(others, (len(members), 1)), drawn[members], label)
    return noisy


def _by_instance(
    labels: np.ndarray, num_classes: int, noise: dict, hit: np.ndarray, drawn: np.ndarray, source: Source | None
) -> np.ndarray:
    # their import takes a second, which other runs need not wait for
    from scipy.special import ndtri, softmax
    from scipy.stats import truncnorm

    assert source is not None
    seed, rate = noise["seed"], noise["rate"]
    if rate == 0:  # the truncated normal distribution has no such mean
        return labels.copy()
    # distributions from raw uniform numbers: NumPy promises more about those
    uniform = np.random.default_rng(derive(seed, "noise", "rates")).random(len(labels))
    flip = truncnorm.ppf(uniform, -rate / INSTANCE_SD, (1 - rate) / INSTANCE_SD, loc=rate, scale=INSTANCE_SD)
    noisy = labels.copy()
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & (hit < flip))
        if not len(members):
            continue
        pixels = source.pixels(members)
        rng = np.random.default_rng(derive(seed, "noise", "projection", int(label)))
        projection = ndtri(rng.random((pixels.shape[1], num_classes)).clip(1e-16))  # 0 would be infinite
        chances = softmax(np.delete(pixels @ projection, label, axis=1), axis=1)
        noisy[members] = _others(chances, drawn[members], label)
    return noisy


def _others(chances: np.ndarray, drawn: np.ndarray, label: int) -> np.ndarray:
    """Draw classes other than ``label``: (n,) from (n, K-1) weights and (n,) numbers in [0, 1)."""
    heights = chances.cumsum(axis=1)
    found = (heights <= drawn[:, None] * heights[:, -1:]).sum(axis=1)
    return found + (found >= label)


def record(noise: dict, true: np.ndarray, labels: np.ndarray, num_classes: int) -> dict:
    """What came of the noise, for ``result.json``.

    Args:
        noise: The ``noise`` group.
        true: (N,) int64, labels without noise.
        labels: (N,) int64, labels with it.
        num_classes: K.

    Returns:
        The group; ``flipped`` labels; ``realised_rate``; ``transition``: K x K counts, rows true, columns with noise,
        or why it is left out; ``true_class_counts`` and ``class_counts`` (K), without and with noise.
    """
    flipped = int((true != labels).sum())
    transition: list[list[int]] | str
    if noise["name"] == "none":
        transition = "left out: no noise"
    elif num_classes > MATRIX_LIMIT:
        transition = f"left out: {num_classes} classes, over {MATRIX_LIMIT}"
    else:
        pairs = np.bincount(true * num_classes + labels, minlength=num_classes**2)
        transition = pairs.reshape(num_classes, num_classes).tolist()
    return {
        **noise,
        "flipped": flipped,
        "realised_rate": flipped / len(true),
        "transition": transition,
        "true_class_counts": np.bincount(true, minlength=num_classes).tolist(),
        "class_counts": np.bincount(labels, minlength=num_classes).tolist(),
    }

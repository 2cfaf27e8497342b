"""Label noise of the training set. The test set is never touched."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.data import label_files
from kdbench.data.streams import derive
from kdbench.errors import UserError
from kdbench.files import digest

# kind -> its own keys
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "symmetric": ("include_true",),
    "pairflip": (),
    "asymmetric": ("matrix",),
    "instance": (),
    "human": ("path", "annotation"),
    "file": ("path",),
}
GIVEN = ("human", "file")  # the labels are given, so there is no rate to choose
INSTANCE_SD = 0.1  # standard deviation of the flip rates of single images (Xia et al. 2020)
MATRIX_LIMIT = 100  # number of classes up to which result.json holds the transition matrix

# Patrini et al. 2017: true class -> noisy label
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
_CYCLES = [line.split() for line in CIFAR100_SUPERCLASSES.split("\n") if line]
# dataset.source -> its class map
MAPS = {
    "cifar10": CIFAR10_MAP,
    "cifar100": {name: cycle[(i + 1) % len(cycle)] for cycle in _CYCLES for i, name in enumerate(cycle)},
}


class Source(NamedTuple):
    """What some kinds of noise need to know beyond the labels.

    Attributes:
        reader: `dataset.source`.
        classes: names of the classes.
        labels: (M,) int64, true labels of the source's whole training set.
        index: (N,) int64, positions in it of the N samples whose labels are corrupted.
        pixels: function from (n,) positions among those N to (n, F) float64: their images, normalised and flattened.
    """

    reader: str
    classes: tuple[str, ...]
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    pixels: Callable[[np.ndarray], np.ndarray]


def check(noise: Mapping[str, Any], num_classes: int | None = None, reader: str | None = None) -> None:
    """Refuse impossible options, as far as they can be recognised without the data; reads the file that `noise` names.

    Args:
        noise: the `noise` group.
        num_classes: K, if it is known.
        reader: `dataset.source`, if it is known.

    Raises:
        UserError: the kind does not exist, a rate is out of range or does not go with the kind, or a file is missing
            or has the wrong content.
    """
    name, rate = noise["name"], noise["rate"]
    if name not in KINDS:
        raise UserError(f"noise.name={name}: must be one of {', '.join(KINDS)}")
    if missing := [key for key in KINDS[name] if key not in noise]:
        raise UserError(f"noise.name={name}: noise.{missing[0]} is missing; use noise={name}")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"noise.rate={rate}: must be in [0, 1]")
    if name == "none" and rate != 0:
        shown = "null" if rate is None else rate
        raise UserError(f"noise.rate={shown} with noise=none: choose a kind of noise, e.g. noise=symmetric")
    given = name in GIVEN or bool(noise.get("matrix"))
    if given and rate is not None:
        reason = "matrix determines" if noise.get("matrix") else "labels determine"
        raise UserError(f"noise.rate={rate} with noise={name}: the given {reason} the rate; use noise.rate=null")
    if not given and rate is None:
        raise UserError(f"noise.rate=null with noise={name}: must be in [0, 1]")
    if name in GIVEN and not noise["path"]:
        raise UserError(f"noise.path=null with noise={name}: give the file with the labels")
    if name == "human":
        if noise["annotation"] not in label_files.ANNOTATIONS:
            known = ", ".join(label_files.ANNOTATIONS)
            raise UserError(f"noise.annotation={noise['annotation']}: must be one of {known}")
        label_files.read_human_labels(noise["path"], noise["annotation"], num_classes)
    if name == "file":
        label_files.read_labels(noise["path"], num_classes)
    if name == "asymmetric" and noise["matrix"]:
        label_files.read_matrix(noise["matrix"], num_classes)
    elif name == "asymmetric" and reader is not None and reader not in MAPS:
        raise UserError(
            f"noise.matrix=null: only {', '.join(MAPS)} have a built-in class map; give a K x K transition matrix for "
            f"dataset.source={reader}, .npy or .csv"
        )


def fingerprint(noise: Mapping[str, Any]) -> str | None:
    """What identifies the content of the file that the noise is read from, whatever its path.

    Args:
        noise: the `noise` group.

    Returns:
        The first 16 hex digits of its SHA-256; None for noise that is not read from a file.

    Raises:
        UserError: the file cannot be read.
    """
    for key in ("path", "matrix"):
        if path := noise.get(key):
            with label_files.named_errors(f"noise.{key}", path):
                return digest(Path(path))[:16]
    return None


def corrupt(labels: np.ndarray, num_classes: int, noise: Mapping[str, Any], source: Source | None = None) -> np.ndarray:
    """Labels with noise: each sample independently gets another label with some probability.

    `symmetric`: a label drawn uniformly from the other K-1 classes (Han et al., Co-teaching, NeurIPS 2018, arXiv
    1804.06872), where the effective rate is `rate`; or, with `include_true`, from all K classes (Zhang et al., ICLR
    2017, arXiv 1611.03530; Sarfraz et al., arXiv 2007.01922; Li et al., DivideMix, ICLR 2020, arXiv 2002.07394, which
    draws exactly `rate * N` samples), where it is `rate * (K-1)/K`.

    `pairflip`: the next class, i+1 mod K (Co-teaching).

    `asymmetric`: a similar class (Patrini et al., CVPR 2017, arXiv 1609.03683). On CIFAR-10 truck becomes automobile,
    bird becomes airplane, deer becomes horse, cat and dog become each other, and the other five stay. On CIFAR-100 a
    class becomes the next one of its superclass, the last becoming the first. Or by a given transition matrix.

    `instance`: depending on the image (Xia et al., NeurIPS 2020, arXiv 2006.07836). The probability that an image's
    label changes is drawn from a normal distribution around `rate`, truncated to [0, 1] (so that the effective rate
    deviates near both ends; `rate=0` changes nothing). The new label is drawn from the softmax of a random projection
    of the pixels, with a separate projection for each true class.

    `human`, `file`: the labels in a file.

    All draws depend on `noise.seed` alone, never on the run's seed, and samples that are changed at a low rate are
    also changed at a higher rate with the same seed.

    Args:
        labels: (N,) int64, true classes in [0, K).
        num_classes: K.
        noise: the `noise` group, checked.
        source: where the samples come from. Required by `instance`, and by `asymmetric` without a matrix. If it is
            None, the file of `human` or `file` must hold the labels of exactly these N samples.

    Returns:
        (N,) int64, a new array.

    Raises:
        UserError: a file is for other images, or the classes are not those of the class map.
    """
    name, rate = noise["name"], noise["rate"]
    if name == "none":
        return labels.copy()
    if name in GIVEN:
        return _given_labels(labels, num_classes, noise, source)
    rng = np.random.default_rng(derive(noise["seed"], "noise"))
    flip_draws, class_draws = rng.random(len(labels)), rng.random(len(labels))  # whether to change a label; to what
    if name == "symmetric":
        choices = num_classes if noise["include_true"] else num_classes - 1
        new = (class_draws * choices).astype(np.int64)
        if not noise["include_true"]:
            new += new >= labels  # skip the true class
        return np.where(flip_draws < rate, new, labels)
    if name == "pairflip":
        return np.where(flip_draws < rate, (labels + 1) % num_classes, labels)
    if name == "instance":
        return _by_instance(labels, num_classes, noise, flip_draws, class_draws, source)
    if noise["matrix"]:
        return _by_matrix(labels, label_files.read_matrix(noise["matrix"], num_classes), flip_draws, class_draws)
    return np.where(flip_draws < rate, _class_map(source)[labels], labels)


def _given_labels(labels: np.ndarray, num_classes: int, noise: Mapping[str, Any], source: Source | None) -> np.ndarray:
    all_labels, index = (labels, np.arange(len(labels))) if source is None else (source.labels, source.index)
    path, clean = noise["path"], None
    if noise["name"] == "human":
        clean, given = label_files.read_human_labels(path, noise["annotation"], num_classes)
    else:
        given = label_files.read_labels(path, num_classes)
    if len(given) != len(all_labels):
        raise UserError(f"noise.path={path}: {len(given)} labels; must be {len(all_labels)}, one per training image")
    if clean is not None and (wrong := int((clean != all_labels).sum())):
        raise UserError(
            f"noise.path={path}: {label_files.CLEAN} differs from the data set's own labels in {wrong} of {len(clean)} "
            f"images, first at index {(clean != all_labels).argmax()}; the images must be in the order of the data set"
        )
    return given[index]


def _class_map(source: Source | None) -> np.ndarray:
    """(K,) int64: what each class becomes; itself if the map does not name it."""
    assert source is not None
    moves = MAPS[source.reader]
    if absent := sorted({*moves, *moves.values()} - set(source.classes)):
        raise UserError(
            f"noise.matrix=null: the class map of dataset.source={source.reader} uses class names, and no class is "
            f"called {absent[0]} here; give a K x K transition matrix, .npy or .csv"
        )
    return np.array([source.classes.index(moves.get(name, name)) for name in source.classes])


def _by_matrix(labels: np.ndarray, matrix: np.ndarray, flip_draws: np.ndarray, class_draws: np.ndarray) -> np.ndarray:
    noisy = labels.copy()
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & (flip_draws < 1 - matrix[label, label]))
        if not (others := np.delete(matrix[label], label)).any():
            continue  # the diagonal is 1 up to rounding
        noisy[members] = _other_classes(np.tile(others, (len(members), 1)), class_draws[members], label)
    return noisy


def _by_instance(
    labels: np.ndarray,
    num_classes: int,
    noise: Mapping[str, Any],
    flip_draws: np.ndarray,
    class_draws: np.ndarray,
    source: Source | None,
) -> np.ndarray:
    # imported here because it takes a second, which other runs can do without
    from scipy.special import ndtri, softmax
    from scipy.stats import truncnorm

    assert source is not None
    seed, rate = noise["seed"], noise["rate"]
    if rate == 0:  # no truncated normal distribution has this mean
        return labels.copy()
    # from raw uniform numbers, which NumPy is less likely to change than its distributions
    uniform = np.random.default_rng(derive(seed, "noise", "rates")).random(len(labels))
    flip_rates = truncnorm.ppf(uniform, -rate / INSTANCE_SD, (1 - rate) / INSTANCE_SD, loc=rate, scale=INSTANCE_SD)
    noisy = labels.copy()
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & (flip_draws < flip_rates))
        if not len(members):
            continue
        pixels = source.pixels(members)
        rng = np.random.default_rng(derive(seed, "noise", "projection", int(label)))
        projection = ndtri(rng.random((pixels.shape[1], num_classes)).clip(1e-16))  # 0 would become infinite
        probabilities = softmax(np.delete(pixels @ projection, label, axis=1), axis=1)
        noisy[members] = _other_classes(probabilities, class_draws[members], label)
    return noisy


def _other_classes(weights: np.ndarray, draws: np.ndarray, label: int) -> np.ndarray:
    """Draw classes other than `label`: (n,) from (n, K-1) weights and (n,) uniform numbers in [0, 1)."""
    cumulative = weights.cumsum(axis=1)
    classes = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=1)
    return classes + (classes >= label)


def record(noise: Mapping[str, Any], true: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """What `result.json` says about the noise.

    Args:
        noise: the `noise` group.
        true: (N,) int64, labels without noise.
        labels: (N,) int64, labels with noise.
        num_classes: K.

    Returns:
        The group; `flipped`, the number of changed labels; `realised_rate`; `transition`, K x K counts with true
        classes as rows and noisy labels as columns, or why it is left out; `true_class_counts` and `class_counts` (K
        values), without and with noise.
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

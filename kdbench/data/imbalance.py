"""Class imbalance: which training images are kept. Applied before the label noise, by true class."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdbench.data.streams import derive
from kdbench.errors import UserError

# kind -> its own keys
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "longtail": ("factor", "n_max", "pick", "seed"),
    "step": ("factor", "n_max", "pick", "seed"),
    "power_law": ("gamma", "n_max", "n_min", "pick", "seed"),
    "counts": ("counts", "pick", "seed"),
}
# images per class: more than MANY are many, fewer than FEW are few (Liu et al., CVPR 2019, arXiv 1904.05160)
MANY, FEW = 100, 20


def check(imbalance: Mapping[str, Any], num_classes: int | None = None) -> None:
    """Refuse impossible options, as far as they can be recognised without the labels.

    Args:
        imbalance: the `imbalance` group.
        num_classes: K, if it is known.

    Raises:
        UserError: the kind does not exist, an option is out of range, or a class would be empty.
    """
    name = imbalance["name"]
    if name not in KINDS:
        raise UserError(f"imbalance.name={name}: must be one of {', '.join(KINDS)}")
    if missing := [key for key in KINDS[name] if key not in imbalance]:
        raise UserError(f"imbalance.name={name}: imbalance.{missing[0]} is missing; use imbalance={name}")
    if "factor" in imbalance and not imbalance["factor"] >= 1:
        raise UserError(
            f"imbalance.factor={imbalance['factor']}: must be >= 1, the size of the largest class over the smallest"
        )
    if "gamma" in imbalance and not 0 < imbalance["gamma"] <= 50:
        raise UserError(f"imbalance.gamma={imbalance['gamma']}: must be in (0, 50]")
    if name == "counts":
        _check_counts(imbalance["counts"], num_classes)
    elif name != "none" and num_classes is not None and imbalance["n_max"] is not None:
        counts(imbalance, num_classes, imbalance["n_max"])


def _check_counts(values: list[int] | None, num_classes: int | None) -> None:
    if values is None:
        raise UserError("imbalance.counts=null: give the number of images per class, e.g. imbalance.counts=[500,50,5]")
    for label, count in enumerate(values):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"imbalance.counts: class {label} has {count}; must be an int >= 1")
    if num_classes not in (None, len(values)):
        raise UserError(f"imbalance.counts: {len(values)} values; must be {num_classes}, one per class")


def counts(imbalance: Mapping[str, Any], num_classes: int, n_max: int) -> np.ndarray:
    """Number of images of each class, class 0 first.

    `longtail` and `step` (fewer images in the later half of the classes) follow Cao et al., LDAM, NeurIPS 2019, arXiv
    1906.07413: floor(n_max / factor^(i/(K-1))) and floor(n_max / factor). `power_law` follows Sarfraz et al., ICPR
    2020, arXiv 2007.01922: round(a / (b + c^gamma)) for c = 1..K, with n_max images in the first class and n_min in the
    last; a smaller gamma is less balanced.

    Args:
        imbalance: the `imbalance` group, of any kind but `none`.
        num_classes: K.
        n_max: images of the largest class; unused by `counts`.

    Returns:
        (K,) int64, each >= 1.

    Raises:
        UserError: a class would be empty, or `n_min` exceeds `n_max`.
    """
    name = imbalance["name"]
    if name == "counts":
        return np.array(imbalance["counts"], np.int64)
    rank = np.arange(num_classes)
    if name == "power_law":
        return _power_law(num_classes, imbalance["gamma"], n_max, imbalance["n_min"])
    exponents = rank / (num_classes - 1) if name == "longtail" else rank >= num_classes - num_classes // 2
    # 1e-9: a whole quotient must not lose one to a rounding error
    class_counts = np.floor(n_max / float(imbalance["factor"]) ** exponents.astype(float) + 1e-9).astype(np.int64)
    if not class_counts.all():
        raise UserError(
            f"imbalance.factor={imbalance['factor']}: leaves class {class_counts.argmin()} without images; must be <= "
            f"{n_max}, the size of the largest class"
        )
    return class_counts


def _power_law(num_classes: int, gamma: float, n_max: int, n_min: int) -> np.ndarray:
    if not 1 <= n_min <= n_max:
        raise UserError(f"imbalance.n_min={n_min}: must be in [1, {n_max}], up to the size of the largest class")
    if n_min == n_max:
        return np.full(num_classes, n_max)
    last = float(num_classes) ** gamma
    b = (n_min * last - n_max) / (n_max - n_min)
    a = n_max * (1 + b)
    return np.array([round(a / (b + float(c) ** gamma)) for c in range(1, num_classes + 1)])


def subset(labels: np.ndarray, imbalance: Mapping[str, Any], num_classes: int | None = None) -> np.ndarray:
    """Positions of the training images that are kept.

    They depend on `imbalance.seed` alone, never on the run's seed, and smaller subsets are nested in larger ones. With
    `pick=first` they are the first of each class.

    Args:
        labels: (N,) int64, true classes in [0, K).
        imbalance: the `imbalance` group, checked.
        num_classes: K; None for the largest label plus one.

    Returns:
        Ascending int64 positions in `labels`; all of them for `none`.

    Raises:
        UserError: a class has fewer images than are to be kept.
    """
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    name = imbalance["name"]
    if name == "none":
        return np.arange(len(labels))
    available = np.bincount(labels, minlength=num_classes)
    n_max = imbalance.get("n_max")
    class_counts = counts(imbalance, num_classes, int(available.min()) if n_max is None else n_max)
    if (class_counts > available).any():
        label = int((class_counts > available).argmax())
        key = f"counts[{label}]={class_counts[label]}" if name == "counts" else f"n_max={n_max}"
        raise UserError(f"imbalance.{key}: class {label} has only {available[label]} training images")
    rank = np.arange(len(labels), dtype=float)
    if imbalance["pick"] == "random":
        rank = np.random.default_rng(derive(imbalance["seed"], "imbalance")).random(len(labels))
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    kept = [m[np.argsort(rank[m])[:count]] for m, count in zip(members, class_counts, strict=True)]
    return np.sort(np.concatenate(kept))


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which classes have many (over 100), medium (20 to 100) and few (below 20) training images.

    Args:
        class_counts: (K,) images of each class.

    Returns:
        (K,) bool for each of `many`, `medium` and `few`, which are disjoint.
    """
    many, few = class_counts > MANY, class_counts < FEW
    return {"many": many, "medium": ~(many | few), "few": few}


def shots(class_counts: np.ndarray) -> dict[str, int]:
    """Number of classes in each of the `shot_groups`.

    Args:
        class_counts: (K,) images of each class.
    """
    return {name: int(members.sum()) for name, members in shot_groups(class_counts).items()}


def record(imbalance: Mapping[str, Any], labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    """What `result.json` says about the imbalance.

    Args:
        imbalance: the `imbalance` group.
        labels: (N,) int64, true classes of the images that are kept, validation included.
        num_classes: K.

    Returns:
        The group; `class_counts` (K values) and their `shots`; `realised_factor`, the size of the largest class over
        that of the smallest, None if a class is empty.
    """
    class_counts = np.bincount(labels, minlength=num_classes)
    return {
        **imbalance,
        "class_counts": class_counts.tolist(),
        "shots": shots(class_counts),
        "realised_factor": float(class_counts.max() / class_counts.min()) if class_counts.all() else None,
    }

"""Class imbalance: which training images are kept. Applied before the label noise, by true class."""

import numpy as np

from kdbench.data.streams import derive
from kdbench.errors import UserError

# kind -> keys of its own
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "longtail": ("factor", "n_max", "pick", "seed"),
    "step": ("factor", "n_max", "pick", "seed"),
    "power_law": ("gamma", "n_max", "n_min", "pick", "seed"),
    "counts": ("counts", "pick", "seed"),
}
MANY, FEW = 100, 20  # images a class: more are many, fewer are few (Liu et al., CVPR 2019, arXiv 1904.05160)


def check(imbalance: dict, num_classes: int | None = None) -> None:
    """Refuse what cannot be, as far as that can be known without the labels.

    Args:
        imbalance: The ``imbalance`` group.
        num_classes: K, where it is known.

    Raises:
        UserError: If the kind does not exist, an option is out of range, or a class would be empty.
    """
    name = imbalance["name"]
    if name not in KINDS:
        raise UserError(f"imbalance.name={name}: must be one of {', '.join(KINDS)}")
    if missing := [key for key in KINDS[name] if key not in imbalance]:
        raise UserError(f"imbalance.name={name}: has no imbalance.{missing[0]}; choose it with imbalance={name}")
    if "factor" in imbalance and not imbalance["factor"] >= 1:
        raise UserError(f"imbalance.factor={imbalance['factor']}: must be >= 1, largest class over smallest")
    if "gamma" in imbalance and not 0 < imbalance["gamma"] <= 50:
        raise UserError(f"imbalance.gamma={imbalance['gamma']}: must be in (0, 50]")
    if name == "counts":
        _check_counts(imbalance["counts"], num_classes)
    elif name != "none" and num_classes is not None and imbalance["n_max"] is not None:
        counts(imbalance, num_classes, imbalance["n_max"])


def _check_counts(wanted: list[int] | None, num_classes: int | None) -> None:
    if wanted is None:
        raise UserError("imbalance.counts=null: give the images of each class, e.g. imbalance.counts=[500,50,5]")
    for label, count in enumerate(wanted):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"imbalance.counts: class {label} has {count}; must be an int >= 1")
    if num_classes not in (None, len(wanted)):
        raise UserError(f"imbalance.counts: {len(wanted)} values; must be {num_classes}, one a class")


def counts(imbalance: dict, num_classes: int, n_max: int) -> np.ndarray:
    """Images of each class, class 0 first.

    ``longtail`` and ``step`` (the later half of the classes) are those of Cao et al., LDAM, NeurIPS 2019, arXiv
    1906.07413: floor(n_max / factor^(i/(K-1))) and floor(n_max / factor). ``power_law`` is that of Sarfraz
    et al., ICPR 2020, arXiv 2007.01922: round(a / (b + c^gamma)) for c = 1..K, with n_max in the first class and n_min
    in the last; a smaller gamma is less balanced.

    Args:
        imbalance: The ``imbalance`` group, of any kind but ``none``.
        num_classes: K.
        n_max: Images of the largest class; unused by ``counts``.

    Returns:
        (K,) int64, each >= 1.

    Raises:
        UserError: If a class would be empty, or ``n_min`` is above ``n_max``.
    """
    name = imbalance["name"]
    if name == "counts":
        return np.array(imbalance["counts"], np.int64)
    rank = np.arange(num_classes)
    if name == "power_law":
        return _power_law(num_classes, imbalance["gamma"], n_max, imbalance["n_min"])
    share = rank / (num_classes - 1) if name == "longtail" else rank >= num_classes - num_classes // 2
    # a quotient that is whole must not be floored to one less because of its last bit
    found = np.floor(n_max / float(imbalance["factor"]) ** share.astype(float) + 1e-9).astype(np.int64)
    if not found.all():
        raise UserError(
            f"imbalance.factor={imbalance['factor']}: leaves class {found.argmin()} without images; must be <= "
            f"{n_max}, the images of the largest class"
        )
    return found


def _power_law(num_classes: int, gamma: float, n_max: int, n_min: int) -> np.ndarray:
    if not 1 <= n_min <= n_max:
        raise UserError(f"imbalance.n_min={n_min}: must be in [1, {n_max}], the images of the largest class")
    if n_min == n_max:
        return np.full(num_classes, n_max)
    last = float(num_classes) ** gamma
    b = (n_min * last - n_max) / (n_max - n_min)
    a = n_max * (1 + b)
    return np.array([round(a / (b + float(c) ** gamma)) for c in range(1, num_classes + 1)])


def subset(labels: np.ndarray, imbalance: dict, num_classes: int | None = None) -> np.ndarray:
    """Positions of the training images that are kept.

    Which ones depends on ``imbalance.seed`` alone, never on the run's seed, and the fewer are among the more; with
    ``pick=first`` they are the first of each class.

    Args:
        labels: (N,) int64, true classes in [0, K).
        imbalance: The ``imbalance`` group.
        num_classes: K; None: one more than the largest label.

    Returns:
        Ascending int64 positions in ``labels``; all of them for ``none``.

    Raises:
        UserError: As ``check``, or if a class has fewer images than it shall keep.
    """
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    check(imbalance, num_classes)
    name = imbalance["name"]
    if name == "none":
        return np.arange(len(labels))
    there = np.bincount(labels, minlength=num_classes)
    n_max = imbalance.get("n_max")
    wanted = counts(imbalance, num_classes, int(there.min()) if n_max is None else n_max)
    if (wanted > there).any():
        label = int((wanted > there).argmax())
        key = f"counts[{label}]={wanted[label]}" if name == "counts" else f"n_max={n_max}"
        raise UserError(f"imbalance.{key}: class {label} has only {there[label]} training images")
    rank = np.arange(len(labels), dtype=float)
    if imbalance["pick"] == "random":
        rank = np.random.default_rng(derive(imbalance["seed"], "imbalance")).random(len(labels))
    kept = [np.flatnonzero(labels == label) for label in range(num_classes)]
    kept = [members[np.argsort(rank[members])[:count]] for members, count in zip(kept, wanted, strict=True)]
    return np.sort(np.concatenate(kept))


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Which classes have many (over 100), medium (20 to 100) and few (below 20) training images.

    Args:
        class_counts: (K,) images of each class.

    Returns:
        (K,) bool for each of the three, which share no class.
    """
    many, few = class_counts > MANY, class_counts < FEW
    return {"many": many, "medium": ~(many | few), "few": few}


def shots(class_counts: np.ndarray) -> dict[str, int]:
    """How many classes are in each of the ``shot_groups``.

    Args:
        class_counts: (K,) images of each class.
    """
    return {name: int(members.sum()) for name, members in shot_groups(class_counts).items()}


def record(imbalance: dict, labels: np.ndarray, num_classes: int) -> dict:
    """What came of the imbalance, for ``result.json``.

    Args:
        imbalance: The ``imbalance`` group.
        labels: (N,) int64, true classes of what is kept; validation included.
        num_classes: K.

    Returns:
        The group, ``class_counts`` (K) and its ``shots``; ``realised_factor``, largest class over smallest,
        None if one is empty.
    """
    found = np.bincount(labels, minlength=num_classes)
    return {
        **imbalance,
        "class_counts": found.tolist(),
        "shots": shots(found),
        "realised_factor": float(found.max() / found.min()) if found.all() else None,
    }

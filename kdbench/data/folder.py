"""Finding, listing and decoding trees of image files, `root/{train,test}/<class>/*`. Imports no torch."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from kdbench.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
ANNOTATIONS = "val_annotations.txt"


class Tree(NamedTuple):
    """The two folders of a tree, which have the same class folders.

    Attributes:
        train: folder of the training images.
        test: folder of the test images.
        classes: names of the class folders, sorted.
    """

    train: Path
    test: Path
    classes: tuple[str, ...]


def find(root: str | Path, key: str) -> Tree:
    """Find the training and the test folder of a tree, without listing its images.

    The test folder is called `test` or `val`. Where both exist, it is the first that has the class folders of `train`
    or a `val_annotations.txt` (the layout of TinyImageNet's archive).

    Args:
        root: folder of the tree.
        key: configuration key that gave it, for error messages.

    Raises:
        UserError: a folder is missing or has no class folders, or the two have different classes.
    """
    root = Path(root).expanduser()
    train, tests = root / "train", [root / name for name in ("test", "val") if (root / name).is_dir()]
    for exists, path in ((root.is_dir(), root), (train.is_dir(), train), (bool(tests), root / "test")):
        if not exists:
            raise UserError(f"{key}={root}: there is no folder {path}; expected ROOT/{{train,test}}/<class>/<image>")
    classes = _classes(train)
    if not classes:
        raise UserError(f"{key}={root}: {train} has no class folders")
    for test in tests:
        if _classes(test) == classes or (test / ANNOTATIONS).is_file():
            return Tree(train, test, classes)
    unmatched = sorted(set(classes) ^ set(_classes(tests[0])))
    raise UserError(
        f"{key}={root}: the classes of train and {tests[0].name} differ; {len(unmatched)} are in only one of them: "
        + ", ".join(unmatched[:5])
        + (" ..." if len(unmatched) > 5 else "")
    )


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))


def _files(folder: Path) -> list[str]:
    """Image files below a folder, sorted."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )


def listing(folder: Path, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """File names and labels of one folder of a tree, ordered by class, then by name.

    Returns:
        (N,) file names as bytes (one block of memory, which worker processes share) and (N,) int64 labels.

    Raises:
        UserError: a class has no images.
    """
    if (folder / ANNOTATIONS).is_file():
        files = _annotated_files(folder, classes)
    else:
        files = [_files(folder / name) for name in classes]
    for name, members in zip(classes, files, strict=True):
        if not members:
            raise UserError(f"{folder / name}: no images in this class folder ({', '.join(EXTENSIONS)})")
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in files])
    return np.array([os.fsencode(name) for members in files for name in members]), labels


def _annotated_files(folder: Path, classes: tuple[str, ...]) -> list[list[str]]:
    """Image files of each class, from a file with lines `<image name> <tab> <class> <tab> ...`."""
    files: dict[str, list[str]] = {name: [] for name in classes}
    for line in sorted((folder / ANNOTATIONS).read_text().splitlines()):
        image, label, *_ = line.split("\t")
        if label not in files:
            raise UserError(f"{folder / ANNOTATIONS}: {image} is of class {label}, which is not in train")
        files[label].append(str(folder / "images" / image))
    return list(files.values())


def digest(tree: Tree) -> str:
    """The first 16 hex digits of a SHA-256 over the sorted relative names and the sizes of a tree's images."""
    sha = hashlib.sha256()
    for role, folder in (("train", tree.train), ("test", tree.test)):
        start = len(str(folder)) + 1
        for name in _files(folder):
            sha.update(f"{role}/{name[start:].replace(os.sep, '/')}\0{os.stat(name).st_size}\n".encode())
    return sha.hexdigest()[:16]


def verify(tree: Tree) -> None:
    """Open every image and check it as far as possible without decoding it (0.1 ms per image).

    Raises:
        UserError: a file is not an image, or is truncated and its format can tell; the message names the file.
    """
    for folder in (tree.train, tree.test):
        for name in listing(folder, tree.classes)[0]:
            with _opened(name) as image:
                image.verify()


def first_side(tree: Tree) -> int:
    """Side in pixels of the first training image.

    Raises:
        UserError: there is none, it is not square, or it cannot be read.
    """
    files, _ = listing(tree.train, tree.classes[:1])
    with open_image(files[0], 3) as image:
        if image.width != image.height:
            raise UserError(
                f"dataset.image_size=null: {os.fsdecode(files[0])} is {image.width}x{image.height}, not square; "
                "give the side in pixels to which images are cropped and resized"
            )
        return image.width


@contextmanager
def _opened(name: bytes) -> Iterator[Image.Image]:
    path = os.fsdecode(name)
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises a dozen kinds of exceptions
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error


def open_image(name: bytes, channels: int) -> Image.Image:
    """Read one image as RGB (3 channels) or grey (1).

    Raises:
        UserError: the file cannot be read as an image; the message names it.
    """
    with _opened(name) as image:
        return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: int, border: float = 0.0) -> Image.Image:
    """Crop an image to its central square and resize that to size x size.

    Args:
        image: of any size and shape.
        size: side of the result, in pixels.
        border: fraction of the image that is first cut off at each edge.
    """
    if image.size == (size, size) and not border:
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed=border)


def decode(names: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Read images into memory.

    Args:
        names: (N,) file names as bytes.
        size: side in pixels; images of another size are cropped to their central square and resized.
        channels: 1 or 3.

    Returns:
        (N, size, size, channels) uint8.

    Raises:
        UserError: a file cannot be read; the message names it.
    """
    images = np.empty((len(names), size, size, channels), np.uint8)

    def fill(chunk: range) -> None:
        for i in chunk:
            images[i] = np.asarray(fit(open_image(names[i], channels), size)).reshape(size, size, channels)

    chunks = [range(start, min(start + 256, len(names))) for start in range(0, len(names), 256)]
    # small images spend more time in the interpreter than in the decoder, so threads would only slow each other down
    with ThreadPoolExecutor(1 if size < 64 else os.cpu_count()) as pool:
        list(pool.map(fill, chunks))
    return images

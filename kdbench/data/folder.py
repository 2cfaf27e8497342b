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

from kdbench.data.tree_hashes import image_hashes
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

    def refuse(error: OSError) -> None:  # else a folder without permissions would be taken for an empty one
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True)
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
    """The first 16 hex digits of a SHA-256 over the relative names, the classes and the contents of a tree's images.

    Raises:
        UserError: as `listing`; or an image cannot be read.
    """
    folders = {"train": tree.train, "test": tree.test}
    parts = [(role, folder, *listing(folder, tree.classes)) for role, folder in folders.items()]
    contents = iter(image_hashes(tree.train.parent, np.concatenate([names for _, _, names, _ in parts])))
    sha = hashlib.sha256()
    for role, folder, names, labels in parts:
        start = len(os.fsencode(folder)) + 1
        for name, label in zip(names.tolist(), labels.tolist(), strict=True):
            relative = name[start:].replace(os.fsencode(os.sep), b"/")
            words = (role.encode(), os.fsencode(tree.classes[label]), relative, next(contents).tobytes())
            sha.update(b"\0".join(words))
    return sha.hexdigest()[:16]


def verify(tree: Tree) -> None:
    """Open every image and check it as far as possible without decoding it (0.1 ms per image).

    Raises:
        UserError: a file is not an image, is truncated and its format can tell, or has pixels of 32 bits; the message
            names the file.
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
            check_depth(image, path)
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds of exceptions
        raise UserError(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from error


def open_image(name: bytes, channels: int) -> Image.Image:
    """Read one image as RGB (3 channels) or grey (1), as `converted`.

    Raises:
        UserError: the file cannot be read as an image, or has pixels of 32 bits; the message names it.
    """
    with _opened(name) as image:
        return converted(image, channels)


def converted(image: Image.Image, channels: int) -> Image.Image:
    """An image as RGB (3 channels) or grey (1).

    Of pixels with 16 bits, the upper 8 are kept. Pillow reads colours so, but would clip grey pixels at 255.
    """
    shown = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if _has_16_bits(image) else image
    return shown.convert("L" if channels == 1 else "RGB")


def check_depth(image: Image.Image, where: str) -> None:
    """Refuse an image with pixels of 32 bits.

    Args:
        image: opened.
        where: it comes from, for the message.

    Raises:
        UserError: see above.
    """
    if image.mode in ("I", "F") and not _has_16_bits(image):
        raise UserError(
            f"{where}: has 32-bit pixels (Pillow mode {image.mode}), whose range is not known; "
            "save it with 8 or 16 bits"
        )


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow scales the pixels of PGM files of more than 8 bits to 16 bits
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


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

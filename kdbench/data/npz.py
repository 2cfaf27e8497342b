"""Reading a data set from an .npz file; a check reads the labels, but only the headers of the images."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kdbench.data.arrays import NAMES, Arrays, Description, Header, describe
from kdbench.errors import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def description(path: Path, layout: str | None) -> Description:
    """What is known of a file without its images.

    Args:
        path: of the file.
        layout: `nhwc` or `nchw`; None to take the one that fits.

    Raises:
        UserError: there is no such file, or its arrays are not allowed.
    """
    with _named_errors(path), zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
        if missing := [name for name in NAMES if name not in file]:
            present = ", ".join(file.files) or "nothing"
            raise UserError(f"dataset.root={path}: has no {missing[0]}; must have {', '.join(NAMES)}; has {present}")
        x_train, x_test = (_header(archive, name) for name in ("x_train", "x_test"))
        return describe(x_train, file["y_train"], x_test, file["y_test"], layout, f"dataset.root={path}")


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} has the version {version} of NumPy's format")
        shape, _, dtype = _HEADERS[version](member)
    return Header(shape, dtype)


def read(path: Path) -> Arrays:
    """The arrays of a file.

    Raises:
        UserError: the file is damaged.
    """
    with _named_errors(path), np.load(path, allow_pickle=False) as file:
        return Arrays(*(file[name] for name in NAMES))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"dataset.root={path}: there is no such file; must be an .npz file with {', '.join(NAMES)}")
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"dataset.root={path}: cannot be read as an .npz file ({reason})") from error

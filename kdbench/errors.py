"""Errors that are shown in one line, without a traceback."""

import sysconfig
import traceback
from pathlib import Path


class UserError(ValueError):
    """A wrong option, file or environment; the message names the key, the value and what is allowed. Exit code 2."""


class RunFailed(RuntimeError):
    """A run failed for a reason that is not a bug; the message says which run, why, and where its log is.

    Attributes:
        why: the reason alone.
    """

    def __init__(self, message: str, why: str | None = None) -> None:
        super().__init__(message)
        self.why = why or message


def one_line_of(error: BaseException) -> str:
    """Kind, message and place of an error from code outside of kdbench, in one line.

    The error is its first cause, and the place the line of the innermost frame outside of Python, of installed packages
    and of kdbench.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_the_user(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{place}"


def _is_of_the_user(file: str) -> bool:
    paths = sysconfig.get_paths()
    folders = [str(Path(__file__).parent), *(paths[kind] for kind in ("stdlib", "purelib", "platlib"))]
    return not file.startswith("<") and not any(Path(file).is_relative_to(folder) for folder in folders)

"""kdbench: compare knowledge-distillation methods and believe the result.

`kdbench.api` documents the functions. The first use of one imports it, so that `import kdbench` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.api import (
        Record,
        RunFailed,
        RunSpec,
        UserError,
        batch,
        conduct,
        grid,
        load_student,
        make,
        method,
        network,
        run,
        runs,
    )

__version__ = "0.1.0"
__all__ = [
    "Record", "RunFailed", "RunSpec", "UserError",
    "batch", "conduct", "grid", "load_student", "make", "method", "network", "run", "runs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

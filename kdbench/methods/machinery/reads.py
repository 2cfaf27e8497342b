"""What a method reads of the teacher. Its class declares it, and nothing else is given to it."""

from typing import Any, NoReturn

from kdbench.data.batch import Batch
from kdbench.models.features import Features

# `network`: the method calls the teacher itself, with images other than those of the batch.
EVERYTHING = ("stages", "embedding", "logits", "network")


class Undeclared:
    """Stands for a part of the teacher's features that a method does not declare; whatever is done with it is an error.

    Args:
        part: of the features.
        method: name of the class that lacks the declaration.
    """

    def __init__(self, part: str, method: str) -> None:
        self.__dict__.update(part=part, method=method)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        part, method = self.__dict__["part"], self.__dict__["method"]
        raise TypeError(f"{method} reads the teacher's {part}, but does not declare it: reads = ({part!r}, ...)")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Refuse to be an argument of a function of torch."""
        nested = (part for each in (*args, *(kwargs or {}).values()) for part in (each if _listed(each) else [each]))
        next(part for part in nested if isinstance(part, cls))._refuse()

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse


def _listed(argument: Any) -> bool:
    return isinstance(argument, list | tuple)


def declared(teacher: Features, method: Any) -> Features:
    """The features of a teacher, of which a method sees only what its class declares."""
    kind = type(method).__name__
    return Features(
        *(part if name in method.reads else Undeclared(name, kind) for name, part in teacher._asdict().items())  # type: ignore[arg-type]
    )


def transformed(teacher: Features, method: Any, batch: Batch) -> Features:
    """The features of a teacher after a method's `transform_teacher`; what it does not read stays as it is."""
    changed = method.transform_teacher(declared(teacher, method), batch)
    parts = zip(teacher._asdict().items(), changed, strict=True)
    return Features(*(new if name in method.reads else old for (name, old), new in parts))

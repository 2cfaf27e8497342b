"""Read-only nested dictionaries, for configurations that many hands hold."""

from collections.abc import Mapping
from typing import Any, NoReturn, Self


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed once it is made; `{**frozen, ...}` makes an ordinary one.

    It stays a `dict`, so that JSON and pickle take it as it is; OmegaConf wants `plain` ones.
    """

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Self:
        """A frozen copy of a nested mapping; lists are copied, too."""
        return cls({key: _frozen(cls, value) for key, value in node.items()})

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a configuration is read-only: make another one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return FrozenDict, (dict(self),)


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """An ordinary copy of a nested mapping."""
    return {key: plain(value) if isinstance(value, Mapping) else value for key, value in node.items()}


def _frozen(cls: type[FrozenDict], value: Any) -> Any:
    if isinstance(value, Mapping):
        return cls.of(value)
    return [_frozen(cls, item) for item in value] if isinstance(value, list | tuple) else value

"""The names of timm's models, read from timm's source: importing timm, and torch with it, takes many seconds."""

import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_DEPRECATIONS = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)
_DEPRECATED = re.compile(r"^\s*['\"](\w+)['\"]\s*:", re.MULTILINE)


def is_timm_model(name: str) -> bool:
    """Whether timm has a model of this name, with or without a tag of pretrained weights such as `.a1_in1k`.

    Where timm is imported already, its registry answers, in which others may have registered models of their own.
    """
    registry = sys.modules.get("timm.models._registry")
    if registry is not None:
        return bool(registry.is_model(name))
    names = timm_names() | deprecated_names()
    return not names or name.partition(".")[0] in names  # a timm whose source cannot be read decides later


@cache
def timm_names() -> frozenset[str]:
    """Names of timm's models, without those that are deprecated."""
    return frozenset(_REGISTERED.findall(_source()))


@cache
def deprecated_names() -> frozenset[str]:
    """Former names, which timm still knows."""
    return frozenset(name for names in _DEPRECATIONS.findall(_source()) for name in _DEPRECATED.findall(names))


def _source() -> str:
    spec = find_spec("timm")
    places = (spec and spec.submodule_search_locations) or []
    return "\n".join(file.read_text("utf-8") for place in places for file in sorted(Path(place, "models").glob("*.py")))

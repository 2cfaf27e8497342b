"""All use of Hydra's private parts. Whoever calls a function of this file has a public, slower way beside it.

Each function raises `Unavailable` when the part it uses is missing or has another signature than Hydra 1.3's.
"""

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from omegaconf import DictConfig


class Unavailable(Exception):
    """This version of Hydra does not have the private part."""


class OptionFile(NamedTuple):
    """An option of a group, as its file says.

    Attributes:
        content: of the file.
        package: which its header names; None where it has no header.
        parents: options of the same group that its defaults list names, with `_self_`; None where the list holds
            anything else.
        brings_groups: whether the defaults list chooses options of other groups.
    """

    content: DictConfig
    package: str | None
    parents: list[str] | None
    brings_groups: bool


@contextmanager
def _private() -> Iterator[None]:
    try:
        yield
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise Unavailable(str(error)) from error


class Repository:
    """The files of all groups, with those of `hydra.searchpath`.

    Args:
        loader: Hydra's.
        config_name: of the primary configuration.
        fixed: overrides that all jobs share.

    Raises:
        Unavailable: also by every method.
    """

    def __init__(self, loader: ConfigLoader, config_name: str, fixed: list[str]) -> None:
        with _private():
            self._files = loader._parse_overrides_and_create_caching_repo(config_name, fixed)[1]  # type: ignore[attr-defined]

    def has_group(self, name: str) -> bool:
        """Whether there is such a group."""
        with _private():
            return bool(self._files.group_exists(name))

    def option(self, group: str, option: str) -> OptionFile | None:
        """The file of an option; None where there is none, or where it is not a mapping."""
        with _private():
            from hydra.core.default_element import ConfigDefault, GroupDefault

            loaded = self._files.load_config(f"{group}/{option}")
            if loaded is None or not isinstance(loaded.config, DictConfig):
                return None
            defaults = loaded.defaults_list or []
            plain = all(
                isinstance(default, ConfigDefault) and "/" not in str(default.path) and default.package is None
                for default in defaults
            )
            return OptionFile(
                loaded.config,
                loaded.header.get("package"),
                [str(default.path) for default in defaults] if plain else None,
                any(isinstance(default, GroupDefault) and not default.override for default in defaults),
            )


def apply_values(overrides: list[Override], cfg: DictConfig) -> None:
    """Apply overrides of single keys to a composed configuration, as Hydra does at the end of composing.

    Raises:
        ConfigCompositionException: as Hydra, for a key that does not exist, say.
        Unavailable: see above.
    """
    with _private():
        from hydra._internal.config_loader_impl import ConfigLoaderImpl

        ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)


def error_of(returned: JobReturn) -> BaseException:
    """What a failed job has raised. The public property raises it, too, and prints advice that does not apply here."""
    if isinstance(error := getattr(returned, "_return_value", None), BaseException):
        return error
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            returned.return_value  # noqa: B018  reading it raises
        except BaseException as error:
            return error
    raise ValueError("the job has not failed")

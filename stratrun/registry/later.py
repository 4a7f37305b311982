"""Packages whose classes are imported when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def later(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, whose public names are those of `homes`.

    A run that uses few of many classes then imports those few.

    Args:
        homes: The module of the package that each name comes from.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted(homes)

    return get, names


def load_public(package: str, wanted: Sequence[str] = ()) -> None:
    """Import a package, and of what it imports later the public names that are wanted; all, if none are."""
    module = import_module(package)
    for name in getattr(module, "__all__", ()):
        if not wanted or name in wanted:
            getattr(module, name)

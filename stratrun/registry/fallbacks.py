"""Classes of other packages that need no registration."""

import inspect
from importlib import import_module
from typing import Any


def module_of(name: str) -> Any:
    """The module; None when its package is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        return None


def public_classes(module: str) -> dict[str, type]:
    """The classes that a module offers, not those that it only imports."""
    namespace = vars(module_of(module) or object)
    top = module.partition(".")[0]
    return {
        name: found
        for name in namespace.get("__all__") or namespace
        if not name.startswith("_")
        and inspect.isclass(found := namespace.get(name))
        and found.__module__.partition(".")[0] == top
    }

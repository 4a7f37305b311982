"""Classes of other packages that need no registration."""

import inspect
import sys
from importlib import import_module
from typing import Any


def module_of(name: str) -> Any:
    """The module; None when its package is not installed."""
    if name in sys.modules:
        return sys.modules[name]
    # Here, as it takes 0.1 s that only a search in packages not yet loaded should cost.
    from lightning_utilities.core.imports import package_available

    return import_module(name) if package_available(name.partition(".")[0]) else None


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

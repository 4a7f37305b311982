"""Specs of what is under test, as ranks can build them."""

from collections.abc import Mapping
from typing import Any

from stratrun.registry import Registry


def portable(registry: Registry, spec: Any) -> Any:
    """The same with the class in place of its name, which ranks forked before may not have registered.

    Raises:
        UnknownNameError: there is no entry of that name.
    """
    name = spec.get("type") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str) or "." in name:
        return spec
    options = spec if isinstance(spec, Mapping) else {}
    return {**options, "type": registry.get(name)}


def title(spec: Any) -> str:
    """How a report calls it: as the user did."""
    return spec.__name__ if isinstance(spec, type) else repr(spec)

"""Specs of what is under test, as ranks can build them."""

from collections.abc import Mapping
from typing import Any

from stratrun.registry import Registry
from stratrun.testing.ranks import SERVER


def portable(registry: Registry, spec: Any) -> Any:
    """The same with the class in place of its name, which ranks forked before may not have registered.

    Raises:
        UnknownNameError: there is no entry of that name.
    """
    kind = spec.get("type") if isinstance(spec, Mapping) else spec
    if isinstance(kind, str) and "." not in kind:
        kind = registry.get(kind)
        spec = {**(spec if isinstance(spec, Mapping) else {}), "type": kind}
    if getattr(kind, "__module__", None) == "__main__":
        # In a notebook it may have been defined again, and ranks know it as it was when they were forked.
        SERVER.stop()
    return spec


def title(spec: Any) -> str:
    """How a report calls it: as the user did."""
    return spec.__name__ if isinstance(spec, type) else repr(spec)

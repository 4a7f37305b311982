"""Importing this package imports nothing of it: listing checkpoints needs no torch, loading one does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratrun.checkpoint.checkpointer import Checkpointer
    from stratrun.checkpoint.discovery import look_into
    from stratrun.checkpoint.export import export_weights
    from stratrun.checkpoint.reader import Loaded, StoredCheckpoint
    from stratrun.checkpoint.weights import missing, read_weights

_HOMES = {
    "Checkpointer": "checkpointer",
    "Loaded": "reader",
    "StoredCheckpoint": "reader",
    "export_weights": "export",
    "look_into": "discovery",
    "missing": "weights",
    "read_weights": "weights",
}

__all__ = [
    "Checkpointer",
    "Loaded",
    "StoredCheckpoint",
    "export_weights",
    "look_into",
    "missing",
    "read_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

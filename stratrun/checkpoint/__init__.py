"""Importing this package imports nothing of it: listing checkpoints needs no torch, loading one does."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratrun.checkpoint.checkpointer import Checkpointer
    from stratrun.checkpoint.discovery import look_into, missing
    from stratrun.checkpoint.export import export_weights
    from stratrun.checkpoint.reader import Loaded, StoredCheckpoint, Verified
    from stratrun.checkpoint.staging import Staging
    from stratrun.checkpoint.storage_reader import ShardReader
    from stratrun.checkpoint.storage_writer import ShardWriter, SnapshotPlanner
    from stratrun.checkpoint.weights import read_weights
    from stratrun.checkpoint.writer import Attempt

_HOMES = {
    "Attempt": "writer",
    "Checkpointer": "checkpointer",
    "Loaded": "reader",
    "ShardReader": "storage_reader",
    "ShardWriter": "storage_writer",
    "SnapshotPlanner": "storage_writer",
    "Staging": "staging",
    "StoredCheckpoint": "reader",
    "Verified": "reader",
    "export_weights": "export",
    "look_into": "discovery",
    "missing": "discovery",
    "read_weights": "weights",
}

__all__ = [
    "Attempt",
    "Checkpointer",
    "Loaded",
    "ShardReader",
    "ShardWriter",
    "SnapshotPlanner",
    "Staging",
    "StoredCheckpoint",
    "Verified",
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

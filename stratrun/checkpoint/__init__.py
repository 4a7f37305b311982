from stratrun.checkpoint.checkpointer import Checkpointer
from stratrun.checkpoint.discovery import look_into
from stratrun.checkpoint.reader import Loaded, StoredCheckpoint
from stratrun.checkpoint.weights import missing, read_weights

__all__ = ["Checkpointer", "Loaded", "StoredCheckpoint", "look_into", "missing", "read_weights"]

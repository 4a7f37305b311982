from stratrun.checkpoint.checkpointer import Checkpointer
from stratrun.checkpoint.reader import Loaded, StoredCheckpoint
from stratrun.checkpoint.weights import read_weights

__all__ = ["Checkpointer", "Loaded", "StoredCheckpoint", "read_weights"]

from stratrun.engine.clipping import Clipping
from stratrun.engine.engine import Engine

__all__ = ["Clipping", "Engine"]

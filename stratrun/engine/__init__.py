from stratrun.engine.clipping import Clipping
from stratrun.engine.engine import Engine
from stratrun.engine.finite import Guard
from stratrun.engine.non_finite import NonFinite

__all__ = ["Clipping", "Engine", "Guard", "NonFinite"]

"""Predictions in files: written by all ranks while they predict, and read as one.

Importing this package imports nothing of it: hooks see only which formats there are.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratrun.predictions.reader import Predictions, read_predictions
    from stratrun.predictions.writer import PredictionWriter

_HOMES = {"PredictionWriter": "writer", "Predictions": "reader", "read_predictions": "reader"}

__all__ = ["PredictionWriter", "Predictions", "read_predictions"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

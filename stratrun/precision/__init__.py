from stratrun.precision.amp import BF16MixedPrecision, FP16MixedPrecision
from stratrun.precision.base import FullPrecision, Precision
from stratrun.precision.true import BF16TruePrecision, DoublePrecision, FP16TruePrecision, TruePrecision

__all__ = [
    "BF16MixedPrecision",
    "BF16TruePrecision",
    "DoublePrecision",
    "FP16MixedPrecision",
    "FP16TruePrecision",
    "FullPrecision",
    "Precision",
    "TruePrecision",
]

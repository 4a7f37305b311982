from typing import TYPE_CHECKING

from stratrun.registry.later import later

if TYPE_CHECKING:
    from stratrun.loops.base import BaseLoop
    from stratrun.loops.evaluate import EvaluationLoop, TestLoop, ValLoop
    from stratrun.loops.predict import PredictLoop
    from stratrun.loops.train import EpochBasedTrainLoop, IterBasedTrainLoop, TrainLoop
    from stratrun.loops.views import TTAPredictLoop, TTATestLoop, TTAValLoop

__all__ = [
    "BaseLoop",
    "EpochBasedTrainLoop",
    "EvaluationLoop",
    "IterBasedTrainLoop",
    "PredictLoop",
    "TTAPredictLoop",
    "TTATestLoop",
    "TTAValLoop",
    "TestLoop",
    "TrainLoop",
    "ValLoop",
]

__getattr__, __dir__ = later(
    __name__,
    {
        "BaseLoop": "base",
        "EpochBasedTrainLoop": "train",
        "EvaluationLoop": "evaluate",
        "IterBasedTrainLoop": "train",
        "PredictLoop": "predict",
        "TTAPredictLoop": "views",
        "TTATestLoop": "views",
        "TTAValLoop": "views",
        "TestLoop": "evaluate",
        "TrainLoop": "train",
        "ValLoop": "evaluate",
    },
)

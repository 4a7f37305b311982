from stratrun.loops.base import BaseLoop
from stratrun.loops.evaluate import EvaluationLoop, TestLoop, ValLoop
from stratrun.loops.predict import PredictLoop
from stratrun.loops.train import EpochBasedTrainLoop, IterBasedTrainLoop, TrainLoop

__all__ = [
    "BaseLoop",
    "EpochBasedTrainLoop",
    "EvaluationLoop",
    "IterBasedTrainLoop",
    "PredictLoop",
    "TestLoop",
    "TrainLoop",
    "ValLoop",
]

"""Metrics, and what combines them over the samples of all ranks."""

from stratrun.evaluation.accuracy import Accuracy
from stratrun.evaluation.base_metric import BaseMetric
from stratrun.evaluation.evaluator import Evaluator, build_evaluator, check_evaluator
from stratrun.evaluation.mean import MeanMetric
from stratrun.evaluation.metric import Metric

__all__ = [
    "Accuracy",
    "BaseMetric",
    "Evaluator",
    "MeanMetric",
    "Metric",
    "build_evaluator",
    "check_evaluator",
]

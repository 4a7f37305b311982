"""Metrics, and what combines them over the samples of all ranks."""

from typing import TYPE_CHECKING

from stratrun.registry.later import later

if TYPE_CHECKING:
    from stratrun.evaluation.accuracy import Accuracy
    from stratrun.evaluation.base_metric import BaseMetric
    from stratrun.evaluation.confusion import ConfusionMatrix
    from stratrun.evaluation.evaluator import Evaluator, build_evaluator, check_evaluator
    from stratrun.evaluation.f1 import F1
    from stratrun.evaluation.mean import MeanMetric
    from stratrun.evaluation.metric import Metric
    from stratrun.evaluation.perplexity import Perplexity
    from stratrun.evaluation.regression import RegressionErrors
    from stratrun.evaluation.results import DumpResults, evaluate_results

__all__ = [
    "F1",
    "Accuracy",
    "BaseMetric",
    "ConfusionMatrix",
    "DumpResults",
    "Evaluator",
    "MeanMetric",
    "Metric",
    "Perplexity",
    "RegressionErrors",
    "build_evaluator",
    "check_evaluator",
    "evaluate_results",
]

__getattr__, __dir__ = later(
    __name__,
    {
        "Accuracy": "accuracy",
        "BaseMetric": "base_metric",
        "ConfusionMatrix": "confusion",
        "DumpResults": "results",
        "Evaluator": "evaluator",
        "F1": "f1",
        "MeanMetric": "mean",
        "Metric": "metric",
        "Perplexity": "perplexity",
        "RegressionErrors": "regression",
        "build_evaluator": "evaluator",
        "check_evaluator": "evaluator",
        "evaluate_results": "results",
    },
)

"""A PyTorch training framework: one Runner over independent layers.

Importing this package imports nothing else, not even torch: a public name is looked up when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratrun.accelerators import Accelerator
    from stratrun.config import Config
    from stratrun.context import RunContext
    from stratrun.environment import environment_report
    from stratrun.errors import (
        CheckpointCorruptedError,
        CheckpointError,
        CheckpointNotFoundError,
        ConfigError,
        DataError,
        IncompatibleError,
        MetricError,
        MissingArgumentError,
        MissingDependencyError,
        ModelError,
        NonFiniteError,
        StorageError,
        StratrunError,
        UnknownNameError,
    )
    from stratrun.evaluation import Accuracy, BaseMetric, Evaluator, MeanMetric, Metric
    from stratrun.hooks import Hook
    from stratrun.inference import Inferencer
    from stratrun.loggers import Logger
    from stratrun.loops import (
        BaseLoop,
        EpochBasedTrainLoop,
        IterBasedTrainLoop,
        PredictLoop,
        TestLoop,
        ValLoop,
    )
    from stratrun.precision import Precision
    from stratrun.predictions import Predictions, read_predictions
    from stratrun.registry import (
        ACCELERATORS,
        COLLATES,
        DATASETS,
        HOOKS,
        LAUNCHERS,
        LOGGERS,
        LOOPS,
        METRICS,
        MODELS,
        OPTIMIZERS,
        PARAM_SCHEDULERS,
        PRECISIONS,
        RUNNERS,
        SAMPLERS,
        STORAGES,
        STRATEGIES,
        TRANSFORMS,
        Registry,
    )
    from stratrun.runner import Runner
    from stratrun.state import BatchInfo, TrainState
    from stratrun.strategies import Strategy

__version__ = "0.1.0"

__all__ = [
    "ACCELERATORS",
    "COLLATES",
    "DATASETS",
    "HOOKS",
    "LAUNCHERS",
    "LOGGERS",
    "LOOPS",
    "METRICS",
    "MODELS",
    "OPTIMIZERS",
    "PARAM_SCHEDULERS",
    "PRECISIONS",
    "RUNNERS",
    "SAMPLERS",
    "STORAGES",
    "STRATEGIES",
    "TRANSFORMS",
    "Accelerator",
    "Accuracy",
    "BaseLoop",
    "BaseMetric",
    "BatchInfo",
    "CheckpointCorruptedError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Config",
    "ConfigError",
    "DataError",
    "EpochBasedTrainLoop",
    "Evaluator",
    "Hook",
    "IncompatibleError",
    "Inferencer",
    "IterBasedTrainLoop",
    "Logger",
    "MeanMetric",
    "Metric",
    "MetricError",
    "MissingArgumentError",
    "MissingDependencyError",
    "ModelError",
    "NonFiniteError",
    "Precision",
    "PredictLoop",
    "Predictions",
    "Registry",
    "RunContext",
    "Runner",
    "StorageError",
    "Strategy",
    "StratrunError",
    "TestLoop",
    "TrainState",
    "UnknownNameError",
    "ValLoop",
    "environment_report",
    "read_predictions",
]

# Where the names live that do not come from `errors` (those that end in Error) or `registry` (the others).
_HOMES = {
    "Accelerator": "accelerators",
    "Accuracy": "evaluation",
    "BaseLoop": "loops",
    "BaseMetric": "evaluation",
    "BatchInfo": "state",
    "Config": "config",
    "EpochBasedTrainLoop": "loops",
    "Evaluator": "evaluation",
    "Hook": "hooks",
    "Inferencer": "inference",
    "IterBasedTrainLoop": "loops",
    "Logger": "loggers",
    "MeanMetric": "evaluation",
    "Metric": "evaluation",
    "Precision": "precision",
    "PredictLoop": "loops",
    "Predictions": "predictions",
    "RunContext": "context",
    "Runner": "runner",
    "Strategy": "strategies",
    "TestLoop": "loops",
    "TrainState": "state",
    "ValLoop": "loops",
    "environment_report": "environment",
    "read_predictions": "predictions",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "registry")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

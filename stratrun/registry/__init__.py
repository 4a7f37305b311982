"""Names to classes: what a config may call by name."""

from stratrun.registry.kinds import (
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
)
from stratrun.registry.registry import Registry

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
    "Registry",
]

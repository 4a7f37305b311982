"""The corpus: importing it fills `MISTAKES`."""

from tests.mistakes import (
    about_checkpoints,
    about_command_line,
    about_configs,
    about_data,
    about_developing,
    about_hooks,
    about_launch,
    about_loops,
    about_metrics,
    about_migration,
    about_mmengine,
    about_models,
    about_names,
    about_optimizers,
)
from tests.mistakes.mistake import MISTAKES

__all__ = [
    "MISTAKES",
    "about_checkpoints",
    "about_command_line",
    "about_configs",
    "about_data",
    "about_developing",
    "about_hooks",
    "about_launch",
    "about_loops",
    "about_metrics",
    "about_migration",
    "about_mmengine",
    "about_models",
    "about_names",
    "about_optimizers",
]

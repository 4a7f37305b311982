"""What a run's arguments may be, for editors and type checkers: names that there are, and objects.

Registries take the names of plugins too, so besides the names any other text will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from stratrun.accelerators import Accelerator
    from stratrun.loggers import Logger
    from stratrun.precision import Precision
    from stratrun.strategies import Strategy

AcceleratorName = Literal["auto", "cpu", "cuda", "mps"]
StrategyName = Literal["auto", "single", "ddp", "fsdp", "hsdp", "tensor_parallel"]
PrecisionName = Literal["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
NonFinitePolicy = Literal["raise", "skip", "rollback", "ignore"]
LoggerName = Literal["console", "jsonl", "csv", "tensorboard", "files", "background", "mlflow", "wandb"]

AnAccelerator: TypeAlias = "AcceleratorName | str | Mapping[str, Any] | Accelerator"
AStrategy: TypeAlias = "StrategyName | str | Mapping[str, Any] | Strategy"
APrecision: TypeAlias = "PrecisionName | str | Mapping[str, Any] | Precision"
APolicy: TypeAlias = "NonFinitePolicy | Mapping[str, Any]"
ALogger: TypeAlias = "LoggerName | str | Mapping[str, Any] | Logger"
Loggers: TypeAlias = "ALogger | Iterable[ALogger]"

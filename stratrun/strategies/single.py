from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stratrun.registry import STRATEGIES
from stratrun.strategies.base import Strategy


@STRATEGIES.register_module("single")
class SingleDeviceStrategy(Strategy):
    """The whole model on one device, in one process."""

    name = "single"
    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})
    needs_process_group = False
    auto_for: ClassVar[Literal["one process", "several processes"] | None] = "one process"

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        return module

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        return None

    def mean(self, value: Tensor) -> Tensor:
        return value

"""One number format for parameters, inputs and arithmetic alike."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from stratrun.precision.base import Precision
from stratrun.registry import PRECISIONS


class TruePrecision(Precision):
    """Parameters and inputs in `param_dtype`; tensors made in the forward pass as well."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        # Not `module.to`, which makes complex tensors real.
        converted: nn.Module = module._apply(lambda t: t.to(self.param_dtype) if t.is_floating_point() else t)
        return converted

    def forward_context(self) -> AbstractContextManager[Any]:
        return _default_dtype(self.param_dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@PRECISIONS.register_module(["64-true", "64", "fp64"])
class DoublePrecision(TruePrecision):
    """float64 throughout, for checking numerics."""

    name = "64-true"
    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    param_dtype: ClassVar[torch.dtype] = torch.float64
    compute_dtype: ClassVar[torch.dtype] = torch.float64


@PRECISIONS.register_module("bf16-true")
class BF16TruePrecision(TruePrecision):
    """bfloat16 throughout, parameters and optimizer state included.

    With eight bits of mantissa an update of less than 1/256 of a weight is lost.
    """

    name = "bf16-true"
    param_dtype: ClassVar[torch.dtype] = torch.bfloat16
    compute_dtype: ClassVar[torch.dtype] = torch.bfloat16


@PRECISIONS.register_module("16-true")
class FP16TruePrecision(TruePrecision):
    """float16 throughout, without loss scaling: gradients below 6e-8 vanish."""

    name = "16-true"
    param_dtype: ClassVar[torch.dtype] = torch.float16
    compute_dtype: ClassVar[torch.dtype] = torch.float16

"""Number formats for the forward pass, the backward pass and the update."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.registry import PRECISIONS

# One instance for all: entering it costs nothing that a step would notice.
_NOTHING = nullcontext()


class Precision:
    """Number formats; each method here leaves them as the model has them.

    It decides on the forward context, the loss scale and the dtype of parameters, and not on
    where anything lives.
    """

    name: ClassVar[str]
    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})
    param_dtype: ClassVar[torch.dtype] = torch.float32
    """What parameters, and floating point inputs, are converted to."""
    compute_dtype: ClassVar[torch.dtype] = torch.float32
    """What matrix products are computed in; a sharded strategy takes its policy from it."""

    drops_overflow: ClassVar[bool] = False
    """Whether `step` drops updates whose gradients overflowed, as part of scaling losses: then such gradients
    are no reason for `non_finite` to act."""

    device_type: str = "cpu"

    def setup(self, device_type: str) -> None:
        """Learn what device this is for. Called once, before anything else."""
        self.device_type = device_type

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def forward_context(self) -> AbstractContextManager[Any]:
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Make gradients comparable to a threshold, before clipping."""

    def step(self, optimizer: Optimizer) -> bool:
        """Update the parameters; False when the update was dropped for an overflow."""
        optimizer.step()
        return True

    def spare_scale(self) -> None:
        """Leave the loss scale as it is after the update just dropped, which was for a loss of NaN."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


@PRECISIONS.register_module(["32-true", "32", "fp32"])
class FullPrecision(Precision):
    """float32 throughout."""

    name = "32-true"

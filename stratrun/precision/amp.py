"""Automatic mixed precision: float32 parameters, 16-bit arithmetic."""

from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from stratrun.precision.base import Precision
from stratrun.registry import PRECISIONS
from stratrun.spread import is_spread


@PRECISIONS.register_module(["bf16-mixed", "bf16"])
class BF16MixedPrecision(Precision):
    """Autocast to bfloat16. Its range is that of float32, so there is no loss scaling."""

    name = "bf16-mixed"
    compute_dtype: ClassVar[torch.dtype] = torch.bfloat16

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device_type, dtype=self.compute_dtype)


@PRECISIONS.register_module(["16-mixed", "16", "fp16"])
class FP16MixedPrecision(Precision):
    """Autocast to float16 with dynamic loss scaling.

    An update whose gradients overflow is dropped and the scale halved, so there may be fewer
    updates than the loop had windows; `TrainState.skipped` counts them.

    Args:
        init_scale: First loss scale.
        growth_factor, backoff_factor, growth_interval: As in `torch.amp.GradScaler`.
    """

    name = "16-mixed"
    compute_dtype: ClassVar[torch.dtype] = torch.float16
    drops_overflow = True

    def __init__(
        self,
        init_scale: float = 2.0**16,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self._options: dict[str, Any] = {
            "init_scale": init_scale,
            "growth_factor": growth_factor,
            "backoff_factor": backoff_factor,
            "growth_interval": growth_interval,
        }
        self._scaler: torch.amp.GradScaler
        self._checked = False

    def setup(self, device_type: str) -> None:
        super().setup(device_type)
        self._scaler = _Scaler(device_type, **self._options)

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device_type, dtype=self.compute_dtype)

    def backward(self, loss: Tensor) -> None:
        self._adapt()
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        if _has_gradients(optimizer):
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        if not _has_gradients(optimizer):
            return super().step(optimizer)
        self._checked = True
        called: list[bool] = []
        handle = optimizer.register_step_post_hook(lambda *_: called.append(True))
        try:
            self._scaler.step(optimizer)
        finally:
            handle.remove()
        # A fused optimizer is always called, and drops the update inside its kernel.
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            return not any(bool(found) for found in self._found_inf(optimizer))
        return bool(called)

    def _found_inf(self, optimizer: Optimizer) -> list[Tensor]:
        return list(self._scaler._found_inf_per_device(optimizer).values())

    def spare_scale(self) -> None:
        if self._checked:
            # Being given a scale, here the present one, it forgets what the gradients have told.
            self._scaler.update(self._scaler.get_scale())
        self._checked = False

    def state_dict(self) -> dict[str, Any]:
        self._adapt()
        return self._scaler.state_dict()

    def _adapt(self) -> None:
        """Move the scale. Not before all optimizers have stepped: their gradients have the old one."""
        if self._checked:
            self._scaler.update()
        self._checked = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A new one, as the old one may be in the middle of an update that was broken off.
        scaler = _Scaler(self.device_type, **self._options)
        # A run that had no scale before begins with the first one.
        if state:
            scaler.load_state_dict(state)
            self._scaler, self._checked = scaler, False


class _Scaler(torch.amp.GradScaler):
    """Knows of overflows on other ranks, for parameters that are spread over ranks in several ways, or not.

    Torch's own takes all of a dtype at once: it refuses plain ones among others, and asks the ranks that the
    first one is spread over about all, so that only some ranks would drop an update. Nothing public lets the
    gradients be grouped in another way.
    """

    def _unscale_grads_(
        self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        alike: dict[Any, list[Tensor]] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                alike.setdefault((p.device_mesh, p.placements) if is_spread(p) else None, []).append(p)
        found: dict[torch.device, Tensor] = {}
        for parameters in alike.values():
            some = SimpleNamespace(param_groups=[{"params": parameters}])
            apart = super()._unscale_grads_(some, inv_scale, found_inf.clone(), allow_fp16)  # type: ignore[arg-type]
            for device, value in apart.items():
                found[device] = torch.maximum(found[device], value) if device in found else value
        return found


def _has_gradients(optimizer: Optimizer) -> bool:
    """Whether a backward pass has reached its part of the model: the scaler does not take one without."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])

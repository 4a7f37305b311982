from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Literal

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.averaging import AveragingHook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratrun.context import RunContext

_WARMUPS = ("inverse", "exponential")
_BUFFERS = ("model", "average")


@HOOKS.register_module()
class EMAHook(AveragingHook):
    """Keeps an exponential moving average of the weights, and evaluates with it.

    Validation, test and prediction see the averages. Training goes on with the plain weights, and those are
    what a checkpoint holds as the model, whenever it is made; the averages lie beside them. Averaged is each
    floating point parameter, frozen or not, in float32 or more precisely, and each process averages what it
    holds of it.

    Args:
        decay: How much of an average stays when it is moved, the weight making up the rest.
        begin: How many updates come before the averages, which start as the weights of then.
        warmup: How the decay grows up to `decay`, so that the first weights are soon forgotten. Of the n-th
            averaged update it is: with True ``min(decay, (1 + n) / (10 + n))``, as
            ``tf.train.ExponentialMovingAverage`` has with `num_updates`; with ``"inverse"``
            ``min(decay, n / (gamma + n))``; with ``"exponential"`` ``decay * (1 - exp(-(1 + n) / gamma))``.
        gamma: How slowly it grows, in averaged updates.
        interval: Updates between two that are averaged.
        buffers: What evaluations have as floating point buffers, such as running statistics: ``"model"``
            for the model's own, ``"average"`` for averages, as of weights.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        begin: int = 0,
        warmup: bool | Literal["inverse", "exponential"] = False,
        gamma: float = 100.0,
        interval: int = 1,
        buffers: Literal["model", "average"] = "model",
    ) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ConfigError(f"decay={decay!r} must be a number from 0 to below 1, such as 0.999")
        if isinstance(begin, bool) or not isinstance(begin, int) or begin < 0:
            raise ConfigError(f"begin={begin!r} must be a whole number of updates, 0 or more")
        if not isinstance(warmup, bool) and warmup not in _WARMUPS:
            raise ConfigError(
                f"warmup={warmup!r} is unknown; give True or False, or {nearest(str(warmup), _WARMUPS)}"
            )
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not gamma > 0:
            raise ConfigError(f"gamma={gamma!r} must be a number of updates above 0")
        if type(interval) is not int or interval < 1:
            raise ConfigError(f"interval={interval!r} must be a whole number of updates, at least 1")
        if buffers not in _BUFFERS:
            raise ConfigError(f"buffers={buffers!r} is unknown; {nearest(str(buffers), _BUFFERS)}")
        super().__init__()
        self.decay = decay
        self.begin = begin
        self.warmup = warmup
        self.gamma = gamma
        self.interval = interval
        self.buffers = buffers

    def _mark(self, runner: RunContext) -> int | None:
        step = runner.step
        return step if step >= self.begin and (step - self.begin) % self.interval == 0 else None

    def _weight(self) -> float:
        decay, n = self.decay, self._updates
        if self.warmup is True:
            decay = min(decay, (1 + n) / (10 + n))
        elif self.warmup == "inverse":
            decay = min(decay, n / (self.gamma + n))
        elif self.warmup == "exponential":
            decay *= 1 - exp(-(1 + n) / self.gamma)
        return 1 - decay

    def _averaged(self, model: nn.Module) -> dict[str, Tensor]:
        found = super()._averaged(model)
        if self.buffers == "average":
            saved = model.state_dict()
            found |= {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
        return found

    def _shown(self, runner: RunContext) -> None:
        if self.buffers == "average":
            # Each process has averaged its own.
            own = [buffer for name, buffer in runner.model.named_buffers() if name in self._live]
            runner.engine.buffers.unify(own, "first")

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stratrun.errors import CheckpointError, ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS
from stratrun.spread import local_part, spread_as

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratrun.context import RunContext


@HOOKS.register_module()
class EMAHook(Hook):
    """Keeps an exponential moving average of the weights, and evaluates with it.

    Validation, test and prediction see the averages. Training goes on with the plain weights, and those are
    what a checkpoint holds as the model, whenever it is made; the averages lie beside them. Averaged is each
    floating point parameter, frozen or not, in float32 or more precisely, and each process averages what it
    holds of it. Buffers, such as running statistics, are the model's own.

    Args:
        decay: How much of an average stays at an update, the weight making up the rest.
        begin: How many updates come before the averages, which start as the weights of then.
        warmup: Whether the n-th averaged update has the decay ``min(decay, (1 + n) / (10 + n))``, as
            ``tf.train.ExponentialMovingAverage`` has with `num_updates`, so that the first weights are
            soon forgotten.
    """

    # Behind hooks that change weights themselves, and ahead of saving.
    priority = 80

    def __init__(self, decay: float = 0.999, begin: int = 0, warmup: bool = False) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ConfigError(f"decay={decay!r} must be a number from 0 to below 1, such as 0.999")
        if isinstance(begin, bool) or not isinstance(begin, int) or begin < 0:
            raise ConfigError(f"begin={begin!r} must be a whole number of updates, 0 or more")
        self.decay = decay
        self.begin = begin
        self.warmup = warmup
        self._model: nn.Module | None = None
        self._parameters: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] = {}
        self._plain: dict[str, Tensor] = {}
        self._updates = 0
        self._step = -1

    def before_train(self, runner: RunContext) -> None:
        self._restore()
        self._bind(runner.model)
        # Also where another hook had saved before the last update was averaged.
        self._follow(runner)

    def before_train_iter(self) -> None:
        # An evaluation that failed, and whose error someone caught, has not ended.
        self._restore()

    def after_train_iter(self, runner: RunContext) -> None:
        self._follow(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        # The end of the data may have closed a window of accumulation.
        self._follow(runner)

    def before_val_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_val_epoch(self) -> None:
        self._restore()

    def before_test_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_test_epoch(self) -> None:
        self._restore()

    def before_predict_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_predict_epoch(self) -> None:
        self._restore()

    def on_exception(self) -> None:
        self._restore()

    def on_break_off(self) -> None:
        self._restore()

    def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the plain weights in place of averages that the model shows at the moment."""
        if not self._plain or self._model is None:
            return
        saved = checkpoint["model"]
        # A loss with weights of its own is saved beside the model.
        prefix = "" if saved.keys() <= self._model.state_dict().keys() else "model."
        for name, parameter in _names(self._model).items():
            if parameter in self._plain:
                saved[f"{prefix}{name}"] = self._plain[parameter]

    def state_dict(self) -> dict[str, Any]:
        """`averages` are whole weights, by the names of the model's own state, buffers and all."""
        averages: dict[str, Any] = dict(self._loaded)
        if self._averages and self._model is not None:
            names, own = _names(self._model), self._model.state_dict()
            averages = {name: self._averages.get(names[name], own[name]) for name in names}
        return {"averages": averages, "updates": self._updates, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averages, self._plain = {}, {}
        self._loaded = state["averages"]
        self._updates, self._step = state["updates"], state["step"]

    def _bind(self, model: nn.Module) -> None:
        """Take note of the model's parameters, and give loaded averages the place of theirs."""
        self._model = model
        found: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()
        }
        self._parameters = found
        if not self._loaded:
            return
        for name, parameter in found.items():
            loaded = self._loaded.get(name)
            if loaded is None or loaded.shape != parameter.shape:
                what = "no average" if loaded is None else f"one of shape {tuple(loaded.shape)}"
                raise CheckpointError(
                    f"EMAHook: parameter {name!r} has the shape {tuple(parameter.shape)}, and the checkpoint "
                    f"{what} of it; use the same model, or only the weights, with load_from="
                )
            self._averages[name] = _like(parameter).copy_(spread_as(loaded, parameter))
        self._loaded = {}

    @torch.no_grad()
    def _follow(self, runner: RunContext) -> None:
        """Average once for an update since the last call, if there was one."""
        if runner.step == self._step or runner.step < self.begin:
            return
        self._step = runner.step
        if self._loaded:  # by a rollback, in the middle of training
            self._bind(runner.model)
        if not self._averages:
            self._averages = {name: _like(p).copy_(p) for name, p in self._parameters.items()}
            return
        self._updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        averages = _held(self._averages.values())
        weights = [p.to(a.dtype) for p, a in zip(_held(self._parameters.values()), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def _show(self, runner: RunContext) -> None:
        """Have the parameters hold the averages, and keep what they held."""
        if self._plain:
            return
        self._bind(runner.model)
        if self._averages:
            self._plain = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._fill(self._averages)

    def _restore(self) -> None:
        """Give the parameters back, to the bit, what they held before an evaluation."""
        if self._plain:
            self._fill(self._plain)
            self._plain = {}

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(_held(self._parameters.values()), _held(values[n] for n in self._parameters))


def _held(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of each: enough for arithmetic that takes every element by itself."""
    return [local_part(tensor) for tensor in tensors]


def _like(parameter: Tensor) -> Tensor:
    """Room for the average of a parameter, where that lies."""
    return torch.empty_like(
        parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False
    )


def _names(model: nn.Module) -> dict[str, str]:
    """For each name in the model's state, the one that its tensor goes by among the parameters.

    Tied weights have several names in the state, and one as parameters.
    """
    state = model.state_dict(keep_vars=True)
    first: dict[Any, str] = {p: name for name, p in model.named_parameters()}
    return {name: first.get(t, name) for name, t in state.items() if isinstance(t, torch.Tensor)}

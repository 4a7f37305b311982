"""From losses to parameters: the accumulation window, clipping, and the optimizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.engine.clipping import Clipping
from stratrun.engine.direct import step_of
from stratrun.engine.finite import Guard
from stratrun.engine.stepping import stepped, take_one_by_one_if_mixed
from stratrun.engine.window import Window, clamp, multiply
from stratrun.errors import ConfigError, nearest
from stratrun.precision.base import Precision
from stratrun.state import TrainState
from stratrun.strategies.base import Strategy

_NO_OPTIMIZER = "there is no optimizer to update with; give optimizer=dict(type='AdamW', lr=1e-3)"


class Updates:
    """What happens to gradients. The engine decides when."""

    def __init__(
        self,
        strategy: Strategy,
        precision: Precision,
        clipping: Clipping | None,
        state: TrainState,
        guard: Guard | None = None,
    ) -> None:
        """`guard` decides on each update; None where whatever comes is taken."""
        self._optimizers: dict[str, Optimizer] = {}
        self._all: list[Optimizer] = []
        # How each is called, where that is not the precision's to say.
        self._calls: dict[int, Callable[[], object]] = {}
        self._strategy = strategy
        self._precision = precision
        self._clipping = clipping
        self._state = state
        self._guard = guard
        # Where gradients are scaled, infinite ones are in order, and the precision's to see to.
        self._looks = guard is not None and not guard.owns_overflow
        self.run_backward: Callable[[Tensor, Tensor], None] = (
            plain_backward(precision) if guard is None else guard.backward
        )
        """Runs backward from a loss, which was made of the one that the user gave."""
        self.witness: Callable[[], None] | None = None
        """Called once, when gradients are as the next update takes them."""
        self._window = Window()
        self._stepped = False
        # Whether gradients may be at hand that belong to no window, and wait for an update all the same.
        self._waiting = False

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        return self._optimizers

    @optimizers.setter
    def optimizers(self, optimizers: dict[str, Optimizer]) -> None:
        """
        Raises:
            ConfigError: one is to take all its parameters at once, and they are not of one kind.
        """
        for name, optimizer in optimizers.items():
            take_one_by_one_if_mixed(name, optimizer)
        self._optimizers, self._all = optimizers, list(optimizers.values())
        if type(self._precision).step is Precision.step:
            self._calls = {id(one): step_of(one) for one in self._all}
        if self._guard is not None:
            self._guard.prepare(optimizers)

    def backward(
        self, outputs: dict[str, Any], divisor: int, scale: float, deciding: dict[str, Any] | None = None
    ) -> None:
        """Add a micro-batch to the window, and its gradients to those of the window.

        Args:
            deciding: What has the loss that decides on the update, where `outputs` are of a part of the
                batch; empty for parts before the last.
        """
        grown = self._window.grown(divisor)
        if grown != 1.0:
            multiply(_gradients(_parameters(*self._all)), grown)
        loss = self._window.add(outputs, divisor, scale)
        given = outputs["loss"] if deciding is None else deciding.get("loss")
        if given is None:
            self._precision.backward(loss)
        else:
            # No number where the loss of an earlier part is none.
            self.run_backward(loss if deciding is None else loss + 0 * given, given)

    def backward_alone(self, loss: Tensor, scale: float) -> None:
        """Add the gradients of a loss that belongs to no window."""
        self._waiting = True
        scaled = loss if scale == 1.0 else loss * scale
        self.run_backward(scaled, loss)

    def update(self, loss: Tensor, scale: float, optimizer: str | None) -> Tensor | None:
        """One update for one loss. Gradients that it leaves on others' parameters wait for nothing."""
        for one in _chosen(self._optimizers, optimizer):
            _forget(one, _parameters(one))
        waiting = self._waiting
        self.backward_alone(loss, scale)
        self._waiting = waiting
        return self.step(optimizer)

    def step(self, optimizer: str | None = None) -> Tensor | None:
        """Clip, update and forget the gradients, by one optimizer or by all.

        Returns:
            The norm before clipping, where gradients are clipped by norm; that of the last optimizer
            whose update was not skipped.

        Raises:
            NonFiniteError: before anything is updated.
        """
        chosen = self._all if optimizer is None and self._all else _chosen(self._optimizers, optimizer)
        held = _held(chosen)
        norm, weight = None, self._window.weight
        norms = [self._clipped(one, parameters, weight) for one, parameters in zip(chosen, held, strict=True)]
        allowed = not self._looks or self._guard.permits()  # type: ignore[union-attr]
        if allowed:
            norm = self._step_each(chosen, norms)
        else:
            self._state.skipped += 1
            # What a rollback has undone is not counted.
            self._stepped = self._stepped and self._guard.settings.policy != "rollback"  # type: ignore[union-attr]
        for one, parameters in zip(chosen, held, strict=True):
            _forget(one, parameters)
        if self._window.batches:
            self._window.clear()
        self._waiting = self._waiting and optimizer is not None
        return norm

    def replayed(self, made: bool) -> None:
        """Take note of an update that was captured and is made again, or dropped."""
        self._stepped = made
        self._state.skipped += not made

    def close_window(self) -> None:
        """Update with what an unfinished window holds."""
        if not self._window.batches:
            return
        parameters = _parameters(*self._all)
        self._strategy.reduce_gradients(parameters)
        multiply(_gradients(parameters), self._window.short_by())
        self.step()
        self.count()

    def settle(self) -> None:
        if self._guard is not None:
            self._guard.settle()

    def count(self) -> None:
        """Count an update, if there was one since the last call, be it by several optimizers."""
        self._state.step += self._stepped
        self._stepped = False

    @property
    def is_open(self) -> bool:
        """Whether gradients wait for an update."""
        return bool(self._window.batches) or self._waiting

    def open_window(self, module: nn.Module) -> dict[str, Any]:
        """The gradients at hand, by the names of `module`, and what they are made of; empty if none."""
        parameters = module.named_parameters() if self.is_open else ()
        gradients = {name: p.grad for name, p in parameters if p.grad is not None}
        if not self._window.batches and not gradients:
            return {}
        kept = {"gradients": gradients, "buffers": _buffers_before(self._guard, module)}
        return {**self._window.state_dict(), "waiting": self._waiting, **kept}

    def reopen_window(self, module: nn.Module, saved: Mapping[str, Any]) -> None:
        """Put back what `open_window` returned, or what `shared_out` made of it."""
        if not saved:
            return
        self._waiting = saved.get("waiting", False)
        self._window.load_state_dict(dict(saved), next(module.parameters()).device)
        for name, parameter in module.named_parameters():
            gradient = saved["gradients"].get(name)
            parameter.grad = None if gradient is None else _laid_out_as(parameter, gradient)
        if self._guard is not None and self._guard.buffers is not None:
            self._guard.buffers.load_state_dict(saved.get("buffers", {}), module)

    def _clipped(self, optimizer: Optimizer, held: list[Tensor], weight: Tensor | None) -> Tensor | None:
        """Make gradients ready for the update, and look at them; returns their norm where one is taken."""
        clipping = self._clipping
        if weight is not None or clipping is not None or self.witness is not None:
            self._precision.unscale(optimizer)
        if weight is not None:
            # No sample anywhere leaves gradients of zero, which stay zero.
            multiply(_gradients(held), 1.0 / self._strategy.mean(weight).clamp_min(1e-12))
        if self._looks and (clipping is None or clipping.value is not None):
            self._guard.look(_gradients(held))  # type: ignore[union-attr]
        norm = None if clipping is None else _clip(self._strategy, held, clipping)
        if norm is not None and self._looks:
            self._guard.look_at_norm(norm)  # type: ignore[union-attr]
        return norm

    def _step_each(self, optimizers: list[Optimizer], norms: list[Tensor | None]) -> Tensor | None:
        norm, dropped = None, False
        if (witness := self.witness) is not None:
            self.witness = None
            witness()
        for one, found in zip(optimizers, norms, strict=True):
            if stepped(self._precision, one, self._strategy.name, self._calls.get(id(one))):
                self._stepped = True
                norm = norm if found is None else found
            else:
                # The norm is that of an overflow, which would make each mean over it infinite.
                self._state.skipped += 1
                dropped = True
        if self._guard is not None and not self._looks:
            self._guard.scaled(dropped)
        return norm


def _chosen(optimizers: dict[str, Optimizer], name: str | None) -> list[Optimizer]:
    """The optimizer of that name, or all of them.

    Raises:
        ConfigError: there is none, or none of that name.
    """
    if not optimizers:
        raise ConfigError(_NO_OPTIMIZER)
    if name is None:
        return list(optimizers.values())
    if name not in optimizers:
        raise ConfigError(f"no optimizer is called {name!r}; {nearest(name, optimizers)}")
    return [optimizers[name]]


def _buffers_before(guard: Guard | None, module: nn.Module) -> dict[str, Tensor]:
    """Those that are put back if the window is left out, the part of it before a checkpoint too."""
    return {} if guard is None or guard.buffers is None else guard.buffers.state_dict(module)


def plain_backward(precision: Precision) -> Callable[[Tensor, Tensor], None]:
    """What runs backward from a loss whatever it is."""
    return lambda loss, given: precision.backward(loss)


def _clip(strategy: Strategy, parameters: list[Tensor], clipping: Clipping) -> Tensor | None:
    if clipping.value is not None:
        clamp(_gradients(parameters), clipping.value)
    if clipping.max_norm is None:
        return None
    return strategy.clip_grad_norm(parameters, clipping.max_norm, clipping.norm_type)


def _parameters(*optimizers: Optimizer) -> list[Tensor]:
    found: list[Tensor] = []
    for one in optimizers:
        for group in one.param_groups:
            found += group["params"]
    return found if len(optimizers) == 1 else list(dict.fromkeys(found))


def _held(optimizers: Sequence[Optimizer]) -> list[list[Tensor]]:
    """The parameters of each; those that several have are of the first, as gradients are made ready once."""
    held = [_parameters(one) for one in optimizers]
    if len(held) > 1:
        seen = set[Tensor]()
        for number, own in enumerate(held):
            if not seen.isdisjoint(own):
                held[number] = [parameter for parameter in own if parameter not in seen]
            seen.update(own)
    return held


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [gradient for p in parameters if (gradient := p.grad) is not None]


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient beside the parameter, and in memory as that is, which fused updates count on."""
    if gradient.stride() == parameter.stride():
        return gradient.to(parameter.device)
    return torch.empty_like(parameter, dtype=gradient.dtype, requires_grad=False).copy_(gradient)


def _forget(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Drop the gradients, as `zero_grad` does, which opens a section for the profiler each time."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for parameter in parameters:
        parameter.grad = None

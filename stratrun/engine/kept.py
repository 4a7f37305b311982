"""The state of an engine from before steps that are to leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.engine.updates import plain_backward
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.spread import local_part
from stratrun.state import TrainState

if TYPE_CHECKING:
    from stratrun.engine.engine import Engine

_PLAIN = (bool, int, float, str, type(None))
_OWN = "train_step"
"""The verb that others may have taken over."""

Again = Callable[[], Any]
"""Makes a value what it was when this was made, and returns it."""


class Kept:
    """What training steps change, in host memory: of what is spread over ranks, each keeps its part.

    Weights, buffers (those that checkpoints leave out, too), plain numbers among the attributes of modules,
    optimizers, the loss scale, gradients, counters, and random generators. It is put back in place, to the
    tensors that there were.
    """

    def __init__(self, engine: "Engine") -> None:
        engine.saved.settle()
        placed = engine._placed
        placed.named.state_dict()  # which has what a forward pass gathered given back
        modules = list(placed.bare.modules())
        self._engine = engine
        self._precision = engine._precision.state_dict()
        self._modules = [(one, _plain(one), dict(one._buffers)) for one in modules]
        self._extra = [(one, deepcopy(one.get_extra_state())) for one in modules if _has_extra(one)]
        parameters = list(placed.bare.parameters())
        self._tensors = [_again(tensor) for tensor in [*parameters, *placed.bare.buffers()]]
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._optimizers = [_optimizer_again(one) for one in engine.optimizers.values()]
        self._state = {one.name: getattr(engine.state, one.name) for one in fields(TrainState)}
        self._verb = vars(engine).get(_OWN)
        self._numbers = host_rng_state(), engine._accelerator.rng_state(engine._device)

    @torch.no_grad()
    def put_back(self, *, broken: bool) -> None:
        """All as it was.

        Args:
            broken: Whether the steps ended by an error: then nothing is exchanged here, as others may not be.
        """
        engine = self._engine
        placed = engine._placed
        _forget_updates(engine)
        if broken:
            placed.wrap_later()
        elif not self._state["iter"]:
            # Some wrappers learn from the first step in which order to exchange gradients.
            placed.wrap_again()
        placed.named.state_dict()  # as above
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for module, values, buffers in self._modules:
            _put_plain(module, values)
            module._buffers.clear()
            module._buffers.update(buffers)
        for again in (*self._tensors, *self._optimizers):
            again()
        for module, state in self._extra:
            module.set_extra_state(state)
        engine._precision.load_state_dict(self._precision)
        for name, value in self._state.items():
            setattr(engine.state, name, value)
        vars(engine).pop(_OWN, None)
        if self._verb is not None:
            vars(engine)[_OWN] = self._verb
        set_host_rng_state(self._numbers[0])
        engine._accelerator.set_rng_state(engine._device, self._numbers[1])


@contextmanager
def unguarded(engine: "Engine") -> Iterator[None]:
    """Have updates made of whatever comes, finite or not."""
    updates = engine._updates
    before = updates._guard, updates._looks, updates.run_backward
    updates._guard, updates._looks, updates.run_backward = None, False, plain_backward(updates._precision)
    try:
        yield
    finally:
        updates._guard, updates._looks, updates.run_backward = before


def _forget_updates(engine: "Engine") -> None:
    """Have none under way, and nothing that waits for one."""
    updates, guard = engine._updates, engine.guard
    updates._window.clear()
    updates._waiting = updates._stepped = False
    if guard is not None:
        guard._losses = []
        if guard.buffers is not None:
            guard.buffers.updated()


def _again(value: Any) -> Again:
    """For a value and all that is in it; tensors and containers stay the objects that they are."""
    if isinstance(value, Tensor):
        part = local_part(value)
        return _copied_back(value, part, part.to("cpu", copy=True))
    if isinstance(value, dict):
        entries = {key: _again(one) for key, one in value.items()}
        return lambda: _refilled(value, entries)
    if isinstance(value, list):
        items = [_again(one) for one in value]
        return lambda: _relisted(value, items)
    if type(value) is tuple:
        parts = [_again(one) for one in value]
        return lambda: tuple(one() for one in parts)
    copy = deepcopy(value)
    return lambda: copy


def _copied_back(tensor: Tensor, part: Tensor, copy: Tensor) -> Again:
    def again() -> Tensor:
        part.copy_(copy)
        return tensor

    return again


def _refilled(held: dict[Any, Any], entries: dict[Any, Again]) -> dict[Any, Any]:
    values = {key: again() for key, again in entries.items()}
    held.clear()
    held.update(values)
    return held


def _relisted(held: list[Any], items: list[Again]) -> list[Any]:
    held[:] = [again() for again in items]
    return held


def _optimizer_again(optimizer: Optimizer) -> Again:
    """For settings of groups and what is kept for parameters, not for the parameters themselves."""
    plain, state, groups = _plain(optimizer), optimizer.state, optimizer.param_groups
    held, each = _again(state), []
    for group in groups:
        entries = {key: _again(value) for key, value in group.items() if key != "params"}
        each.append((group, {key: entries.get(key, _itself(group["params"])) for key in group}))

    def again() -> None:
        _put_plain(optimizer, plain)
        # Loading a state exchanges these objects, which schedules know.
        optimizer.state, optimizer.param_groups = state, groups
        held()
        for group, entries in each:
            _refilled(group, entries)

    return again


def _itself(value: Any) -> Again:
    return lambda: value


def _plain(thing: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(thing).items() if type(value) in _PLAIN}


def _put_plain(thing: Any, values: dict[str, Any]) -> None:
    held = vars(thing)
    for key in _plain(thing).keys() - values.keys():
        del held[key]
    held.update(values)


def _has_extra(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state

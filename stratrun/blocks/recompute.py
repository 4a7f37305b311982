"""Activation checkpointing: a block keeps its inputs alone, and is computed once more on the way back."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_Place = tuple[nn.Module, str]


class Recompute:
    """Has one block computed twice, to the same numbers.

    Both times it draws the same random numbers, of torch, python and numpy, and finds its buffers as they
    were at first. What it writes to them the second time, such as running statistics, is dropped.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._written: list[_Place] | None = None
        """The buffers that a forward pass writes to; None before the first one."""

    def __call__(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        places = _buffers_of(self._block) if self._written is None else self._written
        then = _Then(places)
        result: Any = checkpoint(partial(run, **kwargs), *args, use_reentrant=False, context_fn=then.contexts)
        if self._written is None:
            self._written = then.keep_changed()
        return result

    def traced(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The same within a larger graph, whose compiler sees to random numbers and buffers."""
        return checkpoint(partial(run, **kwargs), *args, use_reentrant=False)


class _Then:
    """What a block found when it was computed for the first time, beside what torch keeps of that."""

    def __init__(self, places: list[_Place]) -> None:
        self._buffers = {place: _buffer(place).clone() for place in places}
        self._random = _python_and_numpy()

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Those of the first time, and of the second."""
        return nullcontext(), self._again()

    def keep_changed(self) -> list[_Place]:
        """Forget buffers that are still as they were, and tell the others."""
        self._buffers = {place: old for place, old in self._buffers.items() if _differs(old, _buffer(place))}
        return list(self._buffers)

    @contextmanager
    def _again(self) -> Iterator[None]:
        now = {place: _buffer(place) for place in self._buffers}
        random_now = _python_and_numpy()
        for (module, name), value in self._buffers.items():
            # Not copied into what is there: earlier steps of the backward pass may still need that unchanged.
            module._buffers[name] = value.clone()
        _set_python_and_numpy(self._random)
        try:
            yield
        finally:
            for (module, name), value in now.items():
                module._buffers[name] = value
            _set_python_and_numpy(random_now)


def _buffers_of(block: nn.Module) -> list[_Place]:
    return [
        (module, name)
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _buffer(place: _Place) -> Tensor:
    module, name = place
    found = module._buffers[name]
    assert found is not None
    return found


def _differs(old: Tensor, new: Tensor) -> bool:
    if old.is_meta or type(new) is not Tensor or old.shape != new.shape:
        return True  # nothing to compare, or not worth it
    return not torch.equal(old, new)


def _python_and_numpy() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def _set_python_and_numpy(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    if state[1] is not None:
        sys.modules["numpy"].random.set_state(state[1])

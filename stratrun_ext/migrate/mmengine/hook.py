"""A hook in MMEngine's form."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from stratrun.hooks import Hook as _Hook

if TYPE_CHECKING:
    from stratrun.context import RunContext

_MODES = ("train", "val", "test")
_MOVED = {"after_train_iter": "iter", "after_train_epoch": "epoch"}
"""The points ahead of which a counter moves here, and behind which it moves in MMEngine."""


class Hook(_Hook):
    """Side work at named points, with the questions of MMEngine's hooks.

    The points, their arguments and `priority` are MMEngine's, and so are ``_before_epoch``,
    ``_after_epoch``, ``_before_iter`` and ``_after_iter``, which a subclass may have for all of training,
    validation and test, told apart by `mode`. Counters count finished work: `runner.iter` has moved in
    `after_train_iter`, and `runner.epoch` in `after_train_epoch`, so that a ``+ 1`` of one's own goes there.
    The methods below know of it, and answer at each point as MMEngine's.
    """

    _moved = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _spread(cls)
        for point, counter in _MOVED.items():
            if point in cls.__dict__:
                setattr(cls, point, _knowing(cls.__dict__[point], counter))

    def every_n_epochs(self, runner: RunContext, n: int, start: int = 0) -> bool:
        """Whether the epoch in hand, the first being 1, is an n-th one behind `start`."""
        return _divides(self._epoch(runner) - start, n)

    def every_n_train_iters(self, runner: RunContext, n: int, start: int = 0) -> bool:
        """Whether the iteration in hand, the first being 1, is an n-th one behind `start`."""
        return _divides(self._iter(runner) - start, n)

    def every_n_inner_iters(self, batch_idx: int, n: int) -> bool:
        """Whether the batch is an n-th one of its epoch."""
        return _divides(batch_idx + 1, n)

    def end_of_epoch(self, dataloader: Any, batch_idx: int) -> bool:
        """Whether the batch is the last one of its epoch."""
        return batch_idx + 1 == len(dataloader)

    def is_last_train_epoch(self, runner: RunContext) -> bool:
        """Whether the epoch in hand is the last."""
        return self._epoch(runner) == runner.max_epochs

    def is_last_train_iter(self, runner: RunContext) -> bool:
        """Whether the iteration in hand is the last."""
        return self._iter(runner) == runner.max_iters

    def _epoch(self, runner: RunContext) -> int:
        return runner.epoch + (self._moved != "epoch")

    def _iter(self, runner: RunContext) -> int:
        return runner.iter + (self._moved != "iter")


def _divides(count: int, n: int) -> bool:
    return n > 0 and count >= 0 and count % n == 0


def _knowing(method: Callable[..., Any], counter: str) -> Callable[..., Any]:
    """The method of a point, during which its counter is known to have moved."""

    @wraps(method)  # whose arguments are then still seen
    def call(self: Hook, *args: Any, **kwargs: Any) -> Any:
        before, self._moved = self._moved, counter
        try:
            return method(self, *args, **kwargs)
        finally:
            self._moved = before

    return call


def _spread(cls: type[Hook]) -> None:
    """Have methods for all three jobs called at the points of each that the class has no method for."""
    for when in ("before", "after"):
        for mode in _MODES:
            if f"_{when}_epoch" in cls.__dict__ and not hasattr(cls, f"{when}_{mode}_epoch"):
                setattr(cls, f"{when}_{mode}_epoch", _epoch_point(f"_{when}_epoch", mode))
            if f"_{when}_iter" in cls.__dict__ and not hasattr(cls, f"{when}_{mode}_iter"):
                point = _before_iter_point if when == "before" else _after_iter_point
                setattr(cls, f"{when}_{mode}_iter", point(mode))


def _epoch_point(name: str, mode: str) -> Callable[..., None]:
    def point(self: Hook, runner: RunContext) -> None:
        getattr(self, name)(runner, mode=mode)

    return point


def _before_iter_point(mode: str) -> Callable[..., None]:
    def point(self: Any, runner: RunContext, batch_idx: int, data_batch: Any = None) -> None:
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode=mode)

    return point


def _after_iter_point(mode: str) -> Callable[..., None]:
    def point(
        self: Any, runner: RunContext, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._after_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode=mode)

    return point

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import FOREIGN_POINTS, POINTS, Hook
from stratrun.registry import HOOKS


@HOOKS.register_module()
class LambdaHook(Hook):
    """A hook out of functions, for what is not worth a class.

    Each takes the arguments that it names, as a method of a hook does::

        LambdaHook(after_val_epoch=lambda metrics: print(metrics))

    Args:
        points: Functions by the points at which they are called, those of a custom loop too.
    """

    def __init__(self, **points: Callable[..., Any]) -> None:
        if not points:
            raise ConfigError(
                "LambdaHook() does nothing; give functions by points: after_train_epoch=print_it"
            )
        for point, function in points.items():
            if not callable(function):
                raise ConfigError(
                    f"LambdaHook: {point}={function!r} is no function; give one that takes what it needs of "
                    f"{', '.join(('runner', *POINTS.get(point, ())))}"
                )
            if hasattr(Hook, point) or not point.startswith(("before_", "after_", "on_")):
                raise ConfigError(
                    f"LambdaHook: {point!r} is no point; {nearest(point, POINTS)}; those of a custom loop "
                    "begin with before_, after_ or on_"
                )
            if point in FOREIGN_POINTS:
                raise ConfigError(f"LambdaHook: {point!r} is called {FOREIGN_POINTS[point]!r} here")
            setattr(self, point, _as_routine(function))


def _as_routine(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, whatever kind of object it is: hooks are searched for routines."""
    if hasattr(function, "__code__"):
        return function
    from functools import wraps

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return call

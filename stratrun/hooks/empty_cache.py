from __future__ import annotations

from typing import TYPE_CHECKING

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class EmptyCacheHook(Hook):
    """Gives memory back that torch keeps in reserve on a GPU, as it is in pieces, or needed by others.

    It is given back around validations, whose tensors have other sizes than training's, and every `every`
    iterations. Each time waits for all work to be done and makes the next iterations allocate anew, so it
    is for runs that are short of memory, not for all.
    """

    def __init__(self, around_validation: bool = True, *, every: int | None = None) -> None:
        if every is not None and (type(every) is not int or every < 1):
            raise ConfigError(
                f"EmptyCacheHook: every={every!r} must be a whole number of iterations, or None"
            )
        self.around_validation = around_validation
        self.every = every

    def before_val(self, runner: RunContext) -> None:
        if self.around_validation:
            runner.engine.gauges.free_cached()

    def after_val(self, runner: RunContext) -> None:
        if self.around_validation:
            runner.engine.gauges.free_cached()

    def after_train_iter(self, runner: RunContext) -> None:
        if self.every is not None and runner.iter % self.every == 0:
            runner.engine.gauges.free_cached()

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from stratrun.hooks.base import Hook
from stratrun.loggers.buffer import WAITING
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Gives the log `time`, seconds an iteration takes, `data_time`, those spent waiting for a batch, and
    `data_share`, what part they are.

    The clock is read without waiting for work that is still under way: a single time may be that
    of launching the work, while means over a window are right all the same.
    """

    # Last, so that saving and logging count for the iteration that they belong to, and not as
    # waiting for the next batch.
    priority = 100

    def __init__(self) -> None:
        self._ended = 0.0
        self._data_time = 0.0
        self._taken: dict[str, list[float]] = {"time": [], "data_time": []}
        self._times, self._waits = self._taken.values()
        self._settle: Callable[[], object] = lambda: None
        self.waiting: float = 0.0
        """Seconds that training has waited for batches, since it began."""
        self.validating: float = 0.0
        """Seconds that validation within it has taken."""
        self._validation = 0.0

    def before_train(self, runner: RunContext) -> None:
        runner.records.ask(self._taken)
        self._settle = runner.records.settle
        self.waiting = self.validating = 0.0
        self._ended = perf_counter()

    def before_train_epoch(self) -> None:
        self._ended = perf_counter()

    def before_val(self) -> None:
        self._validation = perf_counter()

    def after_val(self) -> None:
        # Validation in between is neither an iteration nor waiting.
        self._ended = perf_counter()
        self.validating += self._ended - self._validation

    def before_train_iter(self) -> None:
        self._data_time = perf_counter() - self._ended

    def after_train_iter(self) -> None:
        now = perf_counter()
        self._times.append(now - self._ended)
        self._waits.append(self._data_time)
        self.waiting += self._data_time
        self._ended = now
        if len(self._times) >= WAITING:
            self._settle()

    def before_log(self, values: dict[str, Any]) -> None:
        if values.get("time") and "data_time" in values:
            values["data_share"] = float(values["data_time"]) / float(values["time"])

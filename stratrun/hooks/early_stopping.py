from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import Hook
from stratrun.hooks.ranking import inferred, meant
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext

_SIGNS = {"min": 1.0, "less": 1.0, "max": -1.0, "greater": -1.0}


@HOOKS.register_module()
class EarlyStoppingHook(Hook):
    """Stops training when a result of validation gets no better, or has gone far enough either way.

    It looks after each validation within training, whatever that was due by. The run that is stopped is saved
    as others are at their end. It is judged anew when it is resumed: with the same settings it stops before
    it trains, and with other ones, such as a longer patience, it may go on.

    Args:
        monitor: The result to look at.
        mode: Whether ``"max"`` or ``"min"`` of it is better; ``"auto"`` tells by the name.
        patience: Validations in a row without a better result, after which training stops.
        min_delta: A result is better that is better than the best one by more than this.
        stopping_threshold: Training stops at a result that is as good as this, or better.
        divergence_threshold: Training stops at a result that is worse than this.
        check_finite: Training stops at a result that is infinite or no number. Else such a one is not better.
        begin: How many validations are passed over at first.
    """

    # Behind hooks that put results in, and ahead of saving.
    priority = 75
    # What was found by validation stays found when weights go back.
    goes_on: ClassVar[None] = None

    foreign_arguments: ClassVar[dict[str, str]] = {
        "rule": "mode='max' or 'min'",
        "threshold": "stopping_threshold=...",
        "stop_at": "stopping_threshold=...",
    }
    """What other frameworks call an argument, for messages."""

    def __init__(
        self,
        monitor: str,
        *,
        mode: Literal["auto", "min", "max"] = "auto",
        patience: int = 3,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
        begin: int = 0,
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise ConfigError(f"EarlyStoppingHook: monitor={monitor!r} must be the name of a result")
        for name, count, least in (("patience", patience, 1), ("begin", begin, 0)):
            if type(count) is not int or count < least:
                raise ConfigError(
                    f"EarlyStoppingHook: {name}={count!r} must be a whole number of validations, at "
                    f"least {least}"
                )
        if not _is_number(min_delta) or min_delta < 0:
            raise ConfigError(f"EarlyStoppingHook: min_delta={min_delta!r} must be a number, 0 or more")
        thresholds = {"stopping_threshold": stopping_threshold, "divergence_threshold": divergence_threshold}
        for name, value in thresholds.items():
            if value is not None and not _is_number(value):
                raise ConfigError(f"EarlyStoppingHook: {name}={value!r} must be a number, or None for none")
        self.monitor = monitor
        self.mode: str = _mode(monitor, mode)
        self._sign = _SIGNS[self.mode]
        self.patience = patience
        self.min_delta = min_delta
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_finite = check_finite
        self.begin = begin
        self.best: float | None = None
        """The best result so far; None before one counted."""
        self.waited: int = 0
        """Validations since the best one."""
        self._seen = 0
        self._last: float | None = None

    def before_train(self, runner: RunContext) -> None:
        self._judge(runner)

    def after_val_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if not runner.training:
            return
        results = runner.metrics if metrics is None else metrics
        if self.monitor not in results:
            raise ConfigError(
                f"EarlyStoppingHook: monitor={self.monitor!r} is no result of the validation; "
                f"{nearest(self.monitor, results)}"
            )
        self._seen += 1
        if self._seen <= self.begin:
            return
        self._last = value = float(results[self.monitor])
        if self._is_better(value):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        runner.log({f"{self.monitor}/waited": self.waited}, kind="early_stopping")
        self._judge(runner)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "seen": self._seen, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
        self._seen, self._last = state["seen"], state["last"]

    def _is_better(self, value: float) -> bool:
        if not isfinite(value):
            return False
        return self.best is None or self._sign * (self.best - value) > self.min_delta

    def _judge(self, runner: RunContext) -> None:
        reason = self._reason()
        if reason is not None:
            # Results are the same everywhere, and so is what follows from them.
            runner.request("stop", f"EarlyStoppingHook: {reason}", agreed=True)

    def _reason(self) -> str | None:
        """Why to stop, by what was seen so far; None to go on."""
        last = self._last
        if last is None:
            return None
        told = f"{self.monitor}={last:.6g}"
        if not isfinite(last):
            if self.check_finite:
                return f"{told} is not finite"
        elif self.stopping_threshold is not None and self._worse_by(last, self.stopping_threshold) <= 0:
            return f"{told} has come to stopping_threshold={self.stopping_threshold:g}"
        elif self.divergence_threshold is not None and self._worse_by(last, self.divergence_threshold) > 0:
            return f"{told} is worse than divergence_threshold={self.divergence_threshold:g}"
        if self.waited < self.patience:
            return None
        best = "no result was finite" if self.best is None else f"the best is {self.best:.6g}"
        return f"{told} is the last of {self.waited} validations without a better one; {best}"

    def _worse_by(self, value: float, other: float) -> float:
        return self._sign * (value - other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _mode(monitor: str, mode: Any) -> str:
    if not isinstance(mode, str) or (mode != "auto" and mode not in _SIGNS):
        raise ConfigError(
            f"EarlyStoppingHook: mode={mode!r} is unknown; {nearest(str(mode), ('auto', 'max', 'min'))}"
        )
    if mode == "auto":
        found = inferred(monitor)
        if found is None:
            raise ConfigError(
                f"EarlyStoppingHook: the name monitor={monitor!r} does not tell whether more or less of it "
                f"is better; {meant(monitor)}write mode='max' or mode='min'"
            )
        return "max" if found == "greater" else "min"
    return "max" if _SIGNS[mode] < 0 else "min"

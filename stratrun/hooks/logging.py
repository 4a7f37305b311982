from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.optim.driven import value_of
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from stratrun.context import RunContext

_BEAT_SECONDS = 0.5


@HOOKS.register_module()
class LoggerHook(Hook):
    """Logs training every `interval` iterations, whole-epoch means, and results of evaluations.

    Whatever single numbers the training step returns are logged as means over samples, with the
    learning rates, memory, and the time that is left. Tensors are read at log points only.

    Args:
        window: How many last iterations a mean is over; those since the last log point by default.
    """

    # After the hooks that move learning rates, so that shown is what the next step starts from,
    # and before saving, so that a resumed run has the values of this iteration.
    priority = 70
    goes_on: ClassVar[None] = None

    def __init__(self, interval: int = 50, *, window: int | None = None) -> None:
        for name, value in (("interval", interval), ("window", window)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"LoggerHook: {name}={value!r} must be a whole number of at least 1")
        self.interval = interval
        self.window = window
        self._logged = 0
        self._started = (0, 0.0)
        self._next_beat = 0.0

    def before_train(self, runner: RunContext) -> None:
        runner.records.length = self.window
        # Less than that where a resumed run was broken off before its last values were written.
        self._logged = min(self._logged, runner.iter)
        self._started = (runner.iter, perf_counter())
        totals = {"max_epochs": runner.max_epochs or 0, "max_iters": runner.max_iters or 0}
        runner.log(totals, kind="progress")

    def after_train_iter(self, runner: RunContext, outputs: Any = None) -> None:
        size, records, state = runner.engine.batch.size, runner.records, runner.state
        if type(outputs) is dict or isinstance(outputs, Mapping):
            # A weight of the user's own, such as a number of tokens, is what means go by.
            if "weight" in outputs:
                outputs = dict(outputs)
                weight = outputs.pop("weight")
                size = 0 if size == 0 else weight
            records.add(outputs, size)
        elif outputs is not None:
            records.add({"loss": outputs}, size)
        if state.iter % self.interval == 0:
            self._log_window(runner)
        elif perf_counter() >= self._next_beat:
            self._beat(runner, {})

    def after_train_epoch(self, runner: RunContext) -> None:
        means = {f"{name}_epoch": value for name, value in runner.records.epoch().items()}
        if means:
            runner.log(means, kind="train")
            self._logged = runner.iter

    def after_train(self, runner: RunContext) -> None:
        if runner.iter > self._logged:
            # The window stays open: a run that goes on from here logs as one that did not stop.
            self._log_window(runner, ends=False)
        runner.log({"done": 1}, kind="progress")

    def after_val_iter(self, runner: RunContext, batch_idx: int) -> None:
        if perf_counter() >= self._next_beat:
            self._beat(runner, {"val": batch_idx + 1})

    def after_test_iter(self, runner: RunContext, batch_idx: int) -> None:
        if perf_counter() >= self._next_beat:
            self._beat(runner, {"test": batch_idx + 1})

    def after_predict_iter(self, runner: RunContext, batch_idx: int) -> None:
        if perf_counter() >= self._next_beat:
            self._beat(runner, {"predict": batch_idx + 1})

    def after_val_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if metrics:
            runner.log(metrics, kind="val")

    def after_test_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if metrics:
            runner.log(metrics, kind="test")

    def after_run(self, runner: RunContext) -> None:
        runner.log({"done": 1}, kind="progress")

    def on_exception(self, runner: RunContext) -> None:
        runner.log({"done": 1}, kind="progress")

    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._logged = state.get("logged", 0)

    def _log_window(self, runner: RunContext, *, ends: bool = True) -> None:
        self._logged = runner.iter
        runner.records.put(learning_rates(runner.engine.optimizers))
        values = runner.records.window(ends=ends)
        values.update(runner.engine.memory())
        left = self._seconds_left(runner)
        if left is not None:
            values["eta"] = left
        runner.call_hooks("before_log", values=values)
        runner.log(values)
        runner.call_hooks("after_log")

    def _seconds_left(self, runner: RunContext) -> float | None:
        """By the pace of this process so far, with all that goes on between iterations."""
        started, then = self._started
        if runner.max_iters is None or runner.iter <= started:
            return None
        return (perf_counter() - then) / (runner.iter - started) * (runner.max_iters - runner.iter)

    def _beat(self, runner: RunContext, values: dict[str, float]) -> None:
        runner.log(values, kind="progress")
        self._next_beat = perf_counter() + _BEAT_SECONDS


def learning_rates(optimizers: Mapping[str, Optimizer], param: str = "lr") -> dict[str, Any]:
    """Learning rate, or another value, of each parameter group.

    ``lr`` where there is one; else ``lr/`` and the names of optimizer and group as far as they
    tell groups apart. A group's name is its key `name`, or its number.
    """
    groups: dict[tuple[str, str], Any] = {}
    for name, optimizer in optimizers.items():
        several = len(optimizer.param_groups) > 1
        for number, group in enumerate(optimizer.param_groups):
            part = str(group.get("name", number)) if several else ""
            groups[name if len(optimizers) > 1 else "", part] = value_of(group, param)
    return {"/".join([param, *filter(None, names)]): value for names, value in groups.items()}

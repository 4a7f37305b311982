from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class ParamSchedulerHook(Hook):
    """Moves the learning rate schedules: after each update, each epoch, or each validation.

    A schedule by iteration counts updates, so neither accumulation nor a dropped update makes it
    run ahead of the optimizer.
    """

    # Before logging and saving, which show and keep the state that the next step starts from.
    priority = 60
    goes_on = ("epoch",)

    def __init__(self) -> None:
        self._step = 0
        self._epoch = 0

    def before_train(self, runner: RunContext) -> None:
        # A hook with a lower priority may have saved before the schedules moved.
        self.after_train_iter(runner)
        if self._epoch < runner.epoch:
            self.after_train_epoch(runner)

    def after_train_iter(self, runner: RunContext) -> None:
        # Not more than one behind, but an update at the end of the data comes after this point.
        while self._step < runner.step:
            self._step += 1
            for schedule in runner.schedules:
                if not schedule.by_epoch and schedule.monitor is None:
                    schedule.step()

    def after_train_epoch(self, runner: RunContext) -> None:
        self.after_train_iter(runner)
        self._epoch = runner.epoch
        for schedule in runner.schedules:
            if schedule.by_epoch and schedule.monitor is None:
                schedule.step()

    def after_val_epoch(self, runner: RunContext) -> None:
        for schedule in runner.schedules:
            if schedule.monitor is not None and runner.training:
                schedule.follow(runner.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._epoch = state["step"], state["epoch"]

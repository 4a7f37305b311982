from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class ParamSchedulerHook(Hook):
    """Moves the schedules: after each update, each epoch, or each validation.

    A schedule by iteration counts updates, so neither accumulation nor a dropped update makes it
    run ahead of the optimizer.
    """

    # Before logging and saving, which show and keep the state that the next step starts from.
    priority = 60

    def __init__(self) -> None:
        self._step = 0
        self._epoch = 0

    def before_train(self, runner: RunContext) -> None:
        # A hook with a lower priority may have saved before they moved, or the counts been loaded alone.
        for schedule in runner.schedules:
            done = runner.epoch if schedule.by_epoch else runner.step
            while schedule.monitor is None and schedule.position < done:
                schedule.step()
        self._step, self._epoch = runner.step, runner.epoch

    def after_train_iter(self, runner: RunContext) -> None:
        # Not more than one behind, but an update at the end of the data comes after this point.
        while self._step < runner.step:
            self._step += 1
            for schedule in runner.schedules:
                if not schedule.by_epoch and schedule.monitor is None:
                    schedule.step()
        # Within an epoch behind only where schedules, with weights, were put back to those of an earlier one.
        while self._epoch < runner.epoch:
            self._epoch += 1
            for schedule in runner.schedules:
                if schedule.by_epoch and schedule.monitor is None:
                    schedule.step()

    def after_train_epoch(self, runner: RunContext) -> None:
        self.after_train_iter(runner)

    def after_val_epoch(self, runner: RunContext) -> None:
        for schedule in runner.schedules:
            if schedule.monitor is not None and runner.training:
                schedule.follow(runner.metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._epoch = state["step"], state["epoch"]

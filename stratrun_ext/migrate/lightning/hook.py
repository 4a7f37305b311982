"""Calls the hooks of a class at the points of a run, moves its schedulers, and logs as it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stratrun.errors import IncompatibleError
from stratrun.hooks import Hook, LoggerHook
from stratrun_ext.migrate.lightning import methods

if TYPE_CHECKING:
    from stratrun.context import RunContext
    from stratrun_ext.migrate.lightning.link import Link

_THEIRS = {"val": "validation", "test": "test", "predict": "predict"}


class LightningHook(Hook):
    """Everything of a class that is not a step."""

    # Before those that show and keep what a step or an evaluation gave.
    priority = 40

    def __init__(self, link: Link) -> None:
        self._link = link
        self._own: dict[str, Callable[..., Any]] = {}
        self._ended = 0
        self._step = 0

    def before_run(self, runner: RunContext) -> None:
        names = [f"on_{job}_{when}" for job in ("train", *_THEIRS.values()) for when in _POINTS]
        for name in (*names, "on_fit_start", "on_fit_end"):
            if methods.defines(self._link.module, name):
                self._own[name] = self._link.own(name)
        for name in ("_trainer", "_device"):
            # What Lightning's own class keeps for itself.
            if name in vars(self._link.module):
                value = self._link.view if name == "_trainer" else self._link.module.device
                vars(self._link.module)[name] = value
        origin = self._link.origin
        if origin is not None and runner.iter == 0:
            told = "; ".join(origin.report)
            runner.loggers.say(f"from {origin.path}: {told}")
            if origin.epochs is not None and runner.training:
                # As a run of ours would have them; a checkpoint to resume from is loaded after this.
                self._ended, self._step = origin.ended(self._link), origin.step
                runner.state.epoch, runner.state.validated = origin.epochs, self._ended
                runner.state.iter, runner.state.step = origin.batches, origin.step

    # -- training

    def before_train(self, runner: RunContext) -> None:
        self._step = runner.step
        self._link.epoch = self._ended
        self._call("on_fit_start")
        self._call("on_train_start")

    def before_train_epoch(self, runner: RunContext) -> None:
        self._link.epoch = runner.epoch
        self._call("on_train_epoch_start")

    def before_train_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._link.batch_idx = batch_idx
        if self._call("on_train_batch_start", data_batch, batch_idx) == -1:
            raise IncompatibleError(
                "on_train_batch_start returned -1, which leaves out the rest of an epoch in Lightning; cut "
                "the data set, or set self.trainer.should_stop = True to end the training"
            )

    def after_train_iter(self, runner: RunContext, batch_idx: int, data_batch: Any) -> None:
        if runner.step > self._step:
            self._step = runner.step
            self._link.move_schedulers("step", batch_idx + 1)
        self._call("on_train_batch_end", self._link.outputs, data_batch, batch_idx)

    def after_epoch_and_val(self, runner: RunContext) -> None:
        """An epoch is over, and validated if that was due: also where a run goes on from there."""
        if self._ended < runner.epoch:
            self._step = runner.step
            self._call("on_train_epoch_end")
            self._ended = runner.epoch
            self._link.move_schedulers("epoch", runner.epoch)

    def after_train(self) -> None:
        self._call("on_train_end")
        self._call("on_fit_end")

    # -- evaluation and prediction

    def before_val(self) -> None:
        self._begin("val")

    def before_test(self) -> None:
        self._begin("test")

    def before_predict(self) -> None:
        self._begin("predict")

    def before_val_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._begin_batch("val", batch_idx, data_batch)

    def before_test_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._begin_batch("test", batch_idx, data_batch)

    def before_predict_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._begin_batch("predict", batch_idx, data_batch)

    def after_val_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._end_batch("val", batch_idx, data_batch)

    def after_test_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._end_batch("test", batch_idx, data_batch)

    def after_predict_iter(self, batch_idx: int, data_batch: Any) -> None:
        self._end_batch("predict", batch_idx, data_batch)

    def after_val_epoch(self, metrics: dict[str, float]) -> None:
        self._end("val", metrics)

    def after_test_epoch(self, metrics: dict[str, float]) -> None:
        self._end("test", metrics)

    def after_predict_epoch(self) -> None:
        self._end("predict", {})

    def on_break_off(self) -> None:
        for metric in self._link.collecting.values():
            metric.reset()
        self._link.collecting = {}

    # -- state

    def state_dict(self) -> dict[str, Any]:
        link, kept = self._link, dict[str, Any]()
        if methods.defines(link.module, "on_save_checkpoint"):
            link.own("on_save_checkpoint")(kept)
        schedulers = [one.scheduler.state_dict() for one in link.schedulers]
        return {
            "ended": self._ended,
            "step": self._step,
            "metrics": dict(link.metrics),
            "schedulers": schedulers,
            "kept": kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ended, self._step = state["ended"], state["step"]
        self._link.metrics = dict(state["metrics"])
        for one, saved in zip(self._link.schedulers, state["schedulers"], strict=True):
            one.scheduler.load_state_dict(saved)
        if methods.defines(self._link.module, "on_load_checkpoint"):
            self._link.own("on_load_checkpoint")(state["kept"])

    # -- calls

    def _begin(self, job: str) -> None:
        self._link.batch_idx = 0
        self._call(f"on_{_THEIRS[job]}_start")
        self._call(f"on_{_THEIRS[job]}_epoch_start")

    def _begin_batch(self, job: str, batch_idx: int, batch: Any) -> None:
        self._link.batch_idx = batch_idx
        self._call(f"on_{_THEIRS[job]}_batch_start", batch, batch_idx)

    def _end_batch(self, job: str, batch_idx: int, batch: Any) -> None:
        self._call(f"on_{_THEIRS[job]}_batch_end", self._link.outputs, batch, batch_idx)

    def _end(self, job: str, metrics: dict[str, float]) -> None:
        # Put where hooks behind this one look for the best, and loggers for what to write.
        metrics.update(self._link.at_end(f"on_{_THEIRS[job]}_epoch_end"))
        self._link.metrics.update(metrics)
        self._call(f"on_{_THEIRS[job]}_end")

    def _call(self, name: str, *details: Any) -> Any:
        method = self._own.get(name)
        return None if method is None else method(*details)


_POINTS = ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")


class LightningLoggerHook(LoggerHook):
    """Logs training as `on_step`, `on_epoch` and `logger` of `self.log` say."""

    link: Link

    def before_log(self, values: dict[str, float]) -> None:
        for name, one in self.link.flags.items():
            if one.on_step is False or not one.logger:
                values.pop(name, None)

    def after_train_epoch(self, runner: RunContext) -> None:
        shown: dict[str, float] = {}
        for name, value in runner.records.epoch().items():
            one = self.link.flags.get(name)
            if one is None:
                shown[f"{name}_epoch"] = value
                continue
            self.link.metrics.update({name: value, f"{name}_epoch": value})
            if one.logger and one.on_epoch:
                shown[name if one.on_step is False else f"{name}_epoch"] = value
        if shown:
            runner.log(shown, kind="train")
            self._logged = runner.iter


def logger(link: Link, options: Mapping[str, Any]) -> LightningLoggerHook:
    """The hook in the place of the default one, with that one's arguments."""
    hook = LightningLoggerHook(**options)
    hook.link = link
    return hook

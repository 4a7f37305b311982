from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratrun.loops.base import BaseLoop
from stratrun.loops.schedule import (
    Accumulation,
    ValSchedule,
    changing_epochs,
    changing_iters,
    positive,
    seconds_of,
    window,
)
from stratrun.optim import Extent
from stratrun.problems import part
from stratrun.registry import LOOPS

if TYPE_CHECKING:
    from stratrun.context import RunContext
    from stratrun.data import Feed

Accumulate = int | Sequence[tuple[int, int]] | Mapping[int, int]


class TrainLoop(BaseLoop):
    """What training by epochs and training by iterations have in common.

    A recipe of its own overrides `run_iter`, which does the work on one batch and returns a
    mapping of values to log.

    Args:
        accumulate: Batches whose gradients make one update, or pairs of (epoch or iteration, how many from
            there on). The last window of an epoch, and the last before such a change, may be shorter, and
            is averaged over the batches that it has.
        val_begin: First epoch (or iteration) after which to validate.
        val_interval: Epochs (or iterations) between validations; one is always made at the end.
        dynamic_intervals: Pairs of (epoch or iteration, `val_interval` from there on).
        val_minutes: Validate after so many minutes of training too, wherever the last validation was.
    """

    job = "train"
    unit = "epoch"
    max_epochs: int | None = None
    max_iters: int | None = None
    closes_epoch = False
    """Whether the epoch that training ends in is taken for a whole one."""

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        *,
        accumulate: Accumulate = 1,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        val_minutes: float | None = None,
    ) -> None:
        self.accumulation: Accumulation = Accumulation(accumulate, self.unit)
        self._pause = seconds_of("val_minutes", val_minutes)
        self._validated_at = 0.0
        self.val_schedule: ValSchedule = ValSchedule(val_begin, val_interval, dynamic_intervals, self.unit)
        self.runner = runner
        self.dataloader: Feed = runner.build_dataloader(dataloader, train=True)
        self.evaluator: Any = None

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        for name in ("max_epochs", "max_iters"):
            with part():
                if name in options:
                    positive(name, options[name])
        with part():
            Accumulation(options.get("accumulate", 1), cls.unit)
        begin, interval = options.get("val_begin", 1), options.get("val_interval", 1)
        with part():
            ValSchedule(begin, interval, options.get("dynamic_intervals"), cls.unit)
        seconds_of("val_minutes", options.get("val_minutes"))

    def run_epoch(self) -> None:
        """Train on the rest of the present epoch, or until `iter_done` ends it."""
        runner, feed = self.runner, self.dataloader
        feed.set_epoch(runner.epoch)
        runner.call_hooks("before_train_epoch")
        runner.engine.start_epoch()
        for idx, data_batch in enumerate(feed, start=feed.batches_done):
            runner.call_hooks("before_train_iter", batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            runner.engine.finish_iter()
            if self._pause is not None:
                self._look_at_the_clock(self._pause)
            runner.call_hooks("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
            if self.iter_done():
                if not self.closes_epoch or self.runner.state.stopping:
                    return
                break
        runner.engine.close_window()
        runner.state.epoch += 1
        feed.set_epoch(runner.epoch)
        runner.call_hooks("after_train_epoch")
        runner.control.meet()

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        if self.accumulation.most == 1:
            return self.runner.engine.train_step(data_batch)
        size, last = self.window(idx)
        return self.runner.engine.train_step(data_batch, update=last, divisor=size)

    @property
    def accumulate(self) -> int:
        """Batches of an update at present."""
        return self.accumulation.at(self.runner.epoch)

    def window(self, idx: int) -> tuple[int, bool]:
        """How many batches the window of this one has, and whether this is its last."""
        return window(idx, self.accumulate, self.end_of_data(idx))

    def iter_done(self) -> bool:
        """What comes after each iteration. Returns whether the epoch is to be left."""
        state = self.runner.state
        if state.validate_due and self.runner.has_validation:
            self._validate(state.validated)
        return state.stopping

    def end_of_data(self, idx: int) -> int | None:
        """How many batches this epoch will have had when it ends; None when that is not known."""
        return len(self.dataloader) if self.dataloader.sized else None

    def validate_if_due(self, count: int, *, last: bool) -> None:
        """Validate, unless that was done for this count before the run was broken off."""
        runner = self.runner
        if not runner.has_validation:
            return
        due = count > runner.state.validated and self.val_schedule.due(count, last=last)
        if due or runner.state.validate_due:
            self._validate(count)

    def _look_at_the_clock(self, pause: float) -> None:
        """Before hooks, so that a checkpoint of this iteration has the validation that is due after it."""
        runner = self.runner
        if runner.has_validation and runner.control.seconds - self._validated_at >= pause:
            runner.state.validate_due = True

    def _validate(self, count: int) -> None:
        """Validate, be it for this count or because it was asked for; not any more when the job is to end.

        What is left out or broken off then is due again when the run goes on.
        """
        runner, state = self.runner, self.runner.state
        if state.urgent:
            state.validation_left = True
            return
        before, due = state.validated, state.validate_due
        state.validate_due = False
        state.validated = count
        runner.validate()
        if runner.control.broke_off:
            state.validated, state.validate_due, state.validation_left = before, due, True
        self._validated_at = runner.control.seconds
        runner.control.meet()

    def _end(self) -> None:
        """What comes after the last iteration."""
        # First, as what was asked for last may be to save.
        self.runner.control.meet()
        self.runner.call_hooks("after_train")


@LOOPS.register_module()
class EpochBasedTrainLoop(TrainLoop):
    """Train for `max_epochs` passes over the data, and validate after epochs."""

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        *,
        max_epochs: int,
        accumulate: Accumulate = 1,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        val_minutes: float | None = None,
    ) -> None:
        positive("max_epochs", max_epochs)
        self.max_epochs: int = max_epochs
        super().__init__(
            runner,
            dataloader,
            accumulate=accumulate,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
            val_minutes=val_minutes,
        )
        self._count_iters()

    def run(self) -> None:
        runner, max_epochs = self.runner, self.max_epochs
        assert max_epochs is not None
        self._count_iters()
        runner.call_hooks("before_train")
        # What hooks have asked for there is for all to know before the first iteration.
        runner.control.meet()
        self._validated_at = runner.control.seconds
        # A run that was broken off between an epoch and its validation goes on with that.
        self.validate_if_due(runner.epoch, last=runner.epoch == max_epochs)
        while runner.epoch < max_epochs and not runner.state.stopping:
            self.run_epoch()
            self.validate_if_due(runner.epoch, last=runner.epoch == max_epochs)
        self._end()

    def extent(self) -> Extent:
        assert self.max_epochs is not None
        number, length = self.accumulation.plain, self.dataloader.epoch_length
        if isinstance(number, int):
            return Extent.of_epochs(self.max_epochs, length, number)
        return changing_epochs(self.accumulation, self.max_epochs, length)

    def _count_iters(self) -> None:
        """How many iterations it will be: those done, be it in batches of another size, and those left."""
        feed, (done, epoch) = self.dataloader, (self.runner.iter, self.runner.epoch)
        epochs = (self.max_epochs or 0) - epoch
        length = feed.epoch_length
        if length is None or epochs <= 0:
            self.max_iters = None if length is None else done
            return
        begun = len(feed) - feed.batches_done if feed.epoch == epoch else length
        self.max_iters = done + begun + (epochs - 1) * length


@LOOPS.register_module()
class IterBasedTrainLoop(TrainLoop):
    """Train for `max_iters` batches, passing over the data as often as that takes.

    Validates after iterations.
    """

    unit = "iteration"

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        *,
        max_iters: int,
        accumulate: Accumulate = 1,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        val_minutes: float | None = None,
    ) -> None:
        positive("max_iters", max_iters)
        self.max_iters: int = max_iters
        super().__init__(
            runner,
            dataloader,
            accumulate=accumulate,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
            val_minutes=val_minutes,
        )

    def run(self) -> None:
        self.runner.call_hooks("before_train")
        self.runner.control.meet()
        self._validated_at = self.runner.control.seconds
        # A run that was broken off between an iteration and its validation goes on with that.
        if not self.iter_done():
            while not self._over():
                self.run_epoch()
        self._end()

    def iter_done(self) -> bool:
        self.validate_if_due(self.runner.iter, last=self.runner.iter == self.max_iters)
        return self._over()

    @property
    def accumulate(self) -> int:
        return self.accumulation.at(self.runner.iter)

    def window(self, idx: int) -> tuple[int, bool]:
        # Windows are counted anew from where the number of their batches changes, and from the first batch
        # of each pass over the data.
        begin = self.accumulation.since(self.runner.iter) - (self.runner.iter - idx)
        return window(idx, self.accumulate, self.end_of_data(idx), max(begin, 0))

    def end_of_data(self, idx: int) -> int | None:
        assert self.max_iters is not None
        # The last window ends with the training, or before a change of `accumulate`, when that comes before
        # the end of the data.
        change = self.accumulation.until(self.runner.iter)
        end = self.max_iters if change is None else min(self.max_iters, change)
        left = idx + end - self.runner.iter
        length = super().end_of_data(idx)
        if length is None:
            return left if left <= idx + self.accumulate else None
        return min(length, left)

    def extent(self) -> Extent:
        assert self.max_iters is not None
        number, length = self.accumulation.plain, self.dataloader.epoch_length
        if isinstance(number, int):
            return Extent.of_iters(self.max_iters, length, number)
        return changing_iters(self.accumulation, self.max_iters, length)

    def _over(self) -> bool:
        assert self.max_iters is not None
        return self.runner.iter >= self.max_iters or self.runner.state.stopping

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError
from stratrun.hooks.base import PRIORITIES, Hook
from stratrun.hooks.minutes import AgreedClock
from stratrun.hooks.ranking import Ranking, rules_of
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@dataclass(frozen=True)
class Saving:
    """When a `CheckpointHook` saves, and what it keeps. These are the arguments of the hook.

    Args:
        interval: Epochs (or iterations) between two saves; None for none.
        by_epoch: Whether `interval` counts epochs.
        minutes: Save after so many minutes of training too, wherever the last save was made.
        save_last: Whether to save when training ends. When it is stopped early it is saved anyway.
        on_exception: Whether to save when training is broken off, by Ctrl-C too, provided that a
            resumed run can go on exactly as if nothing had happened; else to say why not. Costs
            some tenths of a millisecond an iteration, and the memory of the model's buffers.
        keep_last: How many of the newest checkpoints to keep; None for all.
        keep_every: Keep every so-many-th of the interval checkpoints for good.
        save_best: Metric to watch; or several, or a mapping of metrics to ``"greater"`` or
            ``"less"``. Their best checkpoints are kept beside the newest.
        rule: Whether the ``"greater"`` or the ``"less"`` value is better; told from the name of the
            metric where it can be.
        keep_best: How many of the best to keep for each metric.
    """

    interval: int | None = 1
    by_epoch: bool = True
    keep_last: int | None = 3
    save_last: bool = True
    save_best: str | Sequence[str] | Mapping[str, str] | None = None
    rule: str | None = None
    keep_best: int = 1
    keep_every: int | None = None
    minutes: float | None = None
    on_exception: bool = False

    def __post_init__(self) -> None:
        for name in ("interval", "keep_last", "keep_best", "keep_every"):
            count = getattr(self, name)
            if count is None and name != "keep_best":
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                mend = "" if name == "keep_best" else f"; {name}=None turns it off"
                raise ConfigError(f"{name}={count!r} must be a whole number, at least 1{mend}")
        minutes: Any = self.minutes
        if minutes is None:
            return
        number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if not number or not isfinite(minutes) or minutes <= 0:
            raise ConfigError(f"minutes={minutes!r} must be a number above 0; minutes=None turns it off")


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves the run at intervals, at its end, when a metric is better than before, and when it breaks.

    Takes the arguments of `Saving`. What an interval asks for at the very end of training is left
    to the save at the end, which comes after the last validation if a metric of that is watched: so
    `best` takes the last results into account, and a finished run that is resumed repeats nothing.
    """

    # Behind the hooks that change state, so that what they did is in the checkpoint.
    priority = PRIORITIES["VERY_LOW"]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.saving = Saving(*args, **options)
        self._top = Ranking(rules_of(self.saving.save_best, self.saving.rule), self.saving.keep_best)
        self._clock = None if self.saving.minutes is None else AgreedClock(60 * self.saving.minutes)
        self._saved_at = -1
        self._intervals = 0
        self._kept: list[int] = []
        # Whether an interval has asked for a save that is made later.
        self._due = False
        # The iteration that all hooks up to this one are done with.
        self._done = -1

    # What the run checks the options of a config against.
    __signature__: inspect.Signature | None = inspect.signature(Saving)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            cls.__signature__ = None

    @property
    def watched(self) -> list[str]:
        """The metrics whose best checkpoints are kept."""
        return list(self._top.rules)

    @property
    def best(self) -> dict[str, list[list[float | int]]]:
        """For each metric that is watched its best values, best first, each with its iteration."""
        return {name: [[value, at] for value, at in found] for name, found in self._top.best.items()}

    def before_train(self, runner: RunContext) -> None:
        self._due, self._done = False, runner.iter
        if self._clock is not None:
            self._clock.start(runner.iter)
        self._note_whole(runner)

    def after_train_iter(self, runner: RunContext) -> None:
        self._done = runner.iter
        every = None if self.saving.by_epoch else self.saving.interval
        # The clock is asked in any case: all processes must take part.
        over = self._clock is not None and self._clock.is_over(runner)
        if over or (every and runner.iter % every == 0):
            self._save_interval(runner)
        self._note_whole(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        every = self.saving.interval if self.saving.by_epoch else None
        if self._due or (every and runner.epoch % every == 0):
            self._save_interval(runner, epoch_over=True)
        self._note_whole(runner)

    def after_val_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if not runner.training:
            return
        among_best = self._top.note(runner.metrics if metrics is None else metrics, runner.iter)
        left_to_the_end = self.saving.save_last and _is_last(runner)
        if among_best and self._saved_at != runner.iter and not left_to_the_end:
            self._save(runner)
        # Else a hook has called for it, and others are not done with the iteration.
        if self._done == runner.iter:
            self._note_whole(runner)

    def after_train(self, runner: RunContext) -> None:
        if self._due:
            self._count_interval(runner)
        if self._saved_at != runner.iter and (self.saving.save_last or runner.state.should_stop):
            self._save(runner)

    def on_exception(self, runner: RunContext, exception: BaseException) -> None:
        if runner.training and (self.saving.on_exception or self._due):
            runner.rescue.save(exception, keep_last=self.saving.keep_last, protect=self._protected())

    def state_dict(self) -> dict[str, Any]:
        return {
            "saved_at": self._saved_at,
            "best": self._top.state_dict(),
            "intervals": self._intervals,
            "kept": list(self._kept),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved_at = state["saved_at"]
        self._top.load_state_dict(state["best"])
        self._intervals, self._kept = state.get("intervals", 0), list(state.get("kept", []))

    def _save_interval(self, runner: RunContext, *, epoch_over: bool = False) -> None:
        if self._is_left_to_the_end(runner, epoch_over):
            self._due = True
            if not self.saving.on_exception:
                runner.rescue.note()
            return
        self._count_interval(runner)
        if self._saved_at != runner.iter:
            self._save(runner)

    def _count_interval(self, runner: RunContext) -> None:
        self._due = False
        self._intervals += 1
        every = self.saving.keep_every
        if every and self._intervals % every == 0:
            self._kept.append(runner.iter)

    def _is_left_to_the_end(self, runner: RunContext, epoch_over: bool) -> bool:
        if not self.saving.save_last or not _is_last(runner):
            return False
        # The end of the epoch comes next, and before a validation.
        if runner.max_epochs is not None and not epoch_over:
            return True
        return bool(self.watched) or not runner.has_validation

    def _save(self, runner: RunContext) -> None:
        # Before saving, as this is part of what is saved.
        self._saved_at = runner.iter
        if self._clock is not None:
            self._clock.start(runner.iter)
        runner.save_checkpoint(keep_last=self.saving.keep_last, protect=self._protected())

    def _protected(self) -> set[int]:
        return {*self._top.iterations, *self._kept}

    def _note_whole(self, runner: RunContext) -> None:
        if self.saving.on_exception:
            runner.rescue.note()


def _is_last(runner: RunContext) -> bool:
    """Whether no further iteration will be made, as far as that is known."""
    if runner.max_epochs is not None and runner.epoch >= runner.max_epochs:
        return True
    return runner.max_iters is not None and runner.iter >= runner.max_iters

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import PRIORITIES, Hook
from stratrun.hooks.ranking import Ranking, rules_of
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext

_WHEN = {"end": "at the end", "stop": "on a stop", "exception": "on an exception"}
_EVENTS = tuple(_WHEN)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves the run at intervals, when a metric is better than before, and on events such as its end.

    What an interval asks for at the very end of training is left to the save at the end, which comes
    after the last validation if a metric of that is watched: so `best` takes the last results into
    account, and a finished run that is resumed repeats nothing.

    Args:
        interval: Epochs (or iterations) between two saves; None for none.
        by_epoch: Whether `interval` counts epochs.
        minutes: Save after so many minutes of training too, wherever the last save was made.
        save_on: What else to save on, one event or several; None for none. ``"end"``: training is done.
            ``"stop"``: it ends early, as a hook has asked for it; asked for by a signal or a time limit, it
            is saved in any case. ``"exception"``: it is
            broken off, by Ctrl-C too; saved is the last state that a resumed run can go on from exactly as
            if nothing had happened, or else it is said why there is none. Costs some tenths of a
            millisecond an iteration, and the memory of the model's buffers.
        keep_last: How many of the newest checkpoints to keep; None for all.
        keep_every: Keep every so-many-th of the interval checkpoints for good.
        save_best: Metric to watch, several, or a mapping of metrics to ``"greater"`` or ``"less"``,
            whichever is better, which else is told from the name. Their best checkpoints are kept
            beside the newest.
        keep_best: How many of the best to keep for each metric.
    """

    # Behind the hooks that change state, so that what they did is in the checkpoint.
    priority: ClassVar[int] = PRIORITIES["VERY_LOW"]
    goes_on: ClassVar[None] = None

    foreign_arguments: ClassVar[dict[str, str]] = {
        "every_n_epochs": "interval=...",
        "every_n_train_steps": "interval=..., by_epoch=False",
        "max_keep_ckpts": "keep_last=...",
        "mode": "save_best={'name': 'greater'} or 'less'",
        "monitor": "save_best=...",
        "on_exception": "save_on=('end', 'stop', 'exception')",
        "rule": "save_best={'name': 'greater'} or 'less'",
        "save_last": "save_on=('end', 'stop'), or save_on='stop' to leave out the end",
        "save_top_k": "keep_best=... beside save_best=...",
    }
    """What other frameworks call an argument, for messages."""

    def __init__(
        self,
        interval: int | None = 1,
        *,
        by_epoch: bool = True,
        minutes: float | None = None,
        save_on: str | Sequence[str] | None = ("end", "stop"),
        keep_last: int | None = 3,
        keep_every: int | None = None,
        save_best: str | Sequence[str] | Mapping[str, str | None] | None = None,
        keep_best: int = 1,
    ) -> None:
        for name, count in (("interval", interval), ("keep_last", keep_last), ("keep_every", keep_every)):
            if count is not None:
                _check_count(name, count, f"; {name}=None turns it off")
        _check_count("keep_best", keep_best)
        self.interval = interval
        self.by_epoch = by_epoch
        self.save_on: frozenset[str] = _events(save_on)
        self._rescues = "exception" in self.save_on
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._top = Ranking(rules_of(save_best), keep_best)
        self._pause = None if minutes is None else 60 * _checked_minutes(minutes)
        # When the pause began, by the clock that all have alike.
        self._since = 0.0
        self._saved_at = -1
        self._intervals = 0
        # Those of the interval checkpoints that stay for good.
        self._kept: list[int] = []
        # Whether an interval is over and its save is still to be made, at the end of training.
        self._due = False
        # The counts that other hooks too were done with when this one was called last.
        self._whole_at = (-1, -1)

    @property
    def watched(self) -> list[str]:
        """The metrics whose best checkpoints are kept."""
        return list(self._top.rules)

    @property
    def best(self) -> dict[str, list[list[float | int]]]:
        """For each metric that is watched its best values, best first, each with its iteration."""
        return {name: [[value, at] for value, at in found] for name, found in self._top.best.items()}

    @property
    def plan(self) -> str:
        """When it saves and what it keeps, in words."""
        times = (
            []
            if self.interval is None
            else [_every(self.interval, "epoch" if self.by_epoch else "iteration")]
        )
        times += [] if self._pause is None else [_every(self._pause / 60, "minute")]
        times += [f"at the best {name}" for name in self._top.rules]
        times += [words for event, words in _WHEN.items() if event in self.save_on]
        kept = "all are kept" if self.keep_last is None else f"the newest {self.keep_last} are kept"
        return f"{', '.join(times) or 'only when asked for'}; {kept}"

    def before_train(self, runner: RunContext) -> None:
        self._due = False
        if self._pause is not None:
            self._since = runner.control.seconds
        self._note_whole(runner)

    def after_train_iter(self, runner: RunContext) -> None:
        over = self._pause is not None and runner.control.seconds - self._since >= self._pause
        over = over or (not self.by_epoch and self._divides(runner.iter))
        if over or self._due or runner.state.save_due:
            self._go_on(runner, over)
        else:
            self._note_whole(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        self._go_on(runner, self.by_epoch and self._divides(runner.epoch))

    def after_val_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if not runner.training:
            return
        among_best = self._top.note(runner.metrics if metrics is None else metrics, runner.iter)
        if among_best and self._saved_at != runner.iter and not self._is_left_to_the_end(runner):
            self._save(runner)
        # Else a hook has called for the validation, before others were done with the iteration or epoch.
        if self._whole_at == (runner.iter, runner.epoch):
            self._note_whole(runner)

    def after_train(self, runner: RunContext) -> None:
        due = self._due or runner.state.save_due or self._saves_at_end(runner)
        if due and self._saved_at != runner.iter:
            self._save(runner)

    def on_exception(self, runner: RunContext, exception: BaseException) -> None:
        # Or what is due is to be saved, and could not be yet.
        if runner.training and (self._due or self._rescues):
            runner.rescue.save(exception, keep_last=self.keep_last, protect=self._protected())

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

    def _divides(self, count: int) -> bool:
        return self.interval is not None and count % self.interval == 0

    def _go_on(self, runner: RunContext, interval_over: bool) -> None:
        """What comes after an iteration or an epoch, whichever intervals count."""
        if interval_over and not self._due:
            self._intervals += 1
            if self.keep_every and self._intervals % self.keep_every == 0:
                self._kept.append(runner.iter)
            self._due = self._saved_at != runner.iter
        if runner.state.save_due:
            runner.state.save_due = False
            self._due = self._saved_at != runner.iter
        if self._due and not self._is_left_to_the_end(runner):
            self._save(runner)
        self._note_whole(runner)

    def _is_left_to_the_end(self, runner: RunContext) -> bool:
        """Whether a save asked for now is the one at the end, of the same iteration."""
        if "end" not in self.save_on or not is_last(runner):
            return False
        epoch_ends_next = runner.max_epochs is not None and runner.epoch < runner.max_epochs
        # A validation may fail, and is not waited for without a metric of it to watch.
        return epoch_ends_next or bool(self.watched) or not runner.has_validation

    def _saves_at_end(self, runner: RunContext) -> bool:
        stopped = runner.state.should_stop
        if stopped and (runner.state.urgent or "stop" in self.save_on):
            return True
        return "end" in self.save_on and (not stopped or is_last(runner))

    def _save(self, runner: RunContext) -> None:
        # Before saving, as this is part of what is saved.
        self._saved_at, self._due = runner.iter, False
        if self._pause is not None:
            self._since = runner.control.seconds
        runner.save_checkpoint(keep_last=self.keep_last, protect=self._protected())

    def _protected(self) -> set[int]:
        return {*self._top.iterations, *self._kept}

    def _note_whole(self, runner: RunContext) -> None:
        self._whole_at = (runner.iter, runner.epoch)
        if self._due or self._rescues:
            runner.rescue.note()


def is_last(runner: RunContext) -> bool:
    """Whether no further iteration will be made, as far as that is known."""
    if runner.max_epochs is not None and runner.epoch >= runner.max_epochs:
        return True
    return runner.max_iters is not None and runner.iter >= runner.max_iters


def _every(count: float, unit: str) -> str:
    return f"every {unit}" if count == 1 else f"every {count:g} {unit}s"


def _events(save_on: Any) -> frozenset[str]:
    names = () if save_on is None else (save_on,) if isinstance(save_on, str) else save_on
    if not isinstance(names, list | tuple | set | frozenset):
        raise ConfigError(f"save_on={save_on!r} must be one or several of {', '.join(_EVENTS)}; or None")
    for name in names:
        if name not in _EVENTS:
            raise ConfigError(f"save_on={name!r} is no event to save on; {nearest(str(name), _EVENTS)}")
    return frozenset(names)


def _check_count(name: str, count: Any, mend: str = "") -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{name}={count!r} must be a whole number, at least 1{mend}")


def _checked_minutes(minutes: Any) -> float:
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not number or not isfinite(minutes) or minutes <= 0:
        raise ConfigError(f"minutes={minutes!r} must be a number above 0; minutes=None turns it off")
    return float(minutes)

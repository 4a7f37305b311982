from __future__ import annotations

import platform
from collections import deque
from collections.abc import Sequence
from statistics import median, median_low
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext, Timed

SECTIONS = ("data", "forward", "hooks")
_LIMIT = 1000
"""As many of the last iterations are kept, should nothing be logged."""
_LEAST = 0.5e-3
"""Seconds an iteration that are worth a word."""


class Slow(NamedTuple):
    """A process that the others wait for, and with what it is slow."""

    process: int
    section: str
    seconds: float
    """What an iteration takes it there."""
    others: float
    """What it takes the others."""
    iteration: float
    """What a whole iteration takes all of them."""
    host: str

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host} is slow in its {self.section}: {self.seconds * 1e3:.1f} "
            f"ms an iteration, where others take {self.others * 1e3:.1f}; all wait for it, an iteration of "
            f"theirs takes {self.iteration * 1e3:.1f} ms"
        )


@HOOKS.register_module()
class StragglerHook(Hook):
    """Names a process that holds up the others, and whether by its data, its forward pass or its hooks.

    Each process times these sections of its iterations. At log points they compare the medians. A process is
    slow that was so in two successive windows, in the same section: there it takes `ratio` times what the
    others take (the lower median of all), and that makes `share` of an iteration. It is said once, until
    a window without. What a process waits for others is in none of the sections. Where processes
    wait for each other within a forward pass, as with sharded weights, that is left out.

    Args:
        ratio: How many times as long as the others a slow one takes.
        share: What part of an iteration the difference makes at least.
    """

    # Last at its points; `_First` is there first.
    priority = 100

    def __init__(self, ratio: float = 1.5, *, share: float = 0.1) -> None:
        if not ratio > 1:
            raise ConfigError(f"StragglerHook: ratio={ratio!r} must be above 1, such as 1.5")
        if not 0 < share < 1:
            raise ConfigError(f"StragglerHook: share={share!r} must be above 0 and below 1, such as 0.1")
        self.ratio = ratio
        self.share = share
        self.found: list[Slow] = []
        """All that were named, on every process."""
        self._first: _First | None = None
        self._forward: Timed | None = None
        self._suspects: set[tuple[int, str]] = set()
        self._named: set[tuple[int, str]] = set()
        self._ended = 0.0
        self._ready = 0.0
        self._clear()

    def before_run(self, runner: RunContext) -> None:
        if self._first is None:
            self._first = _First()
            runner.hooks.register(self._first)

    def before_train(self, runner: RunContext) -> None:
        self._alone = len(runner.engine.gauges.of_all(None)) == 1
        if self._forward is None and not self._alone:
            self._forward = runner.engine.gauges.time_forward()
        self._clear()
        self._ended = perf_counter()

    def before_train_epoch(self) -> None:
        self._ended = perf_counter()

    def after_val(self) -> None:
        self._ended = perf_counter()

    def before_train_iter(self) -> None:
        self._ready = perf_counter()

    def after_train_iter(self) -> None:
        first, now = self._first, perf_counter()
        assert first is not None
        self._data.append(first.began - self._ended)
        self._hooks.append(self._ready - first.began + now - first.stepped)
        self._whole.append(now - self._ended)
        self._ended = now

    def before_log(self, runner: RunContext) -> None:
        if self._alone:
            self._clear()
            return
        if not self._whole:
            return
        forward = self._forward.take() if self._forward is not None else []
        sections = [median(times) if times else None for times in (self._data, forward, self._hooks)]
        row = (runner.process, platform.node(), median(self._whole), sections)
        self._clear()
        self._judge(runner, runner.engine.gauges.of_all(row))

    def after_train(self) -> None:
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    def on_exception(self) -> None:
        self.after_train()

    def _clear(self) -> None:
        self._data: deque[float] = deque(maxlen=_LIMIT)
        self._hooks: deque[float] = deque(maxlen=_LIMIT)
        self._whole: deque[float] = deque(maxlen=_LIMIT)

    def _judge(self, runner: RunContext, rows: Sequence[Any]) -> None:
        """Every process judges the same rows."""
        slow = {(one.process, one.section): one for one in self._slow(rows)}
        for key, one in slow.items():
            if key in self._suspects and key not in self._named:
                self._named.add(key)
                self.found.append(one)
                runner.loggers.say(str(one))
        self._named &= slow.keys()
        self._suspects = set(slow)

    def _slow(self, rows: Sequence[Any]) -> list[Slow]:
        found = []
        iteration = median(whole for _, _, whole, _ in rows)
        for number, section in enumerate(SECTIONS):
            times = [sections[number] for _, _, _, sections in rows]
            if None in times:
                continue
            others = median_low(times)
            for (process, host, _, _), seconds in zip(rows, times, strict=True):
                enough = max(self.share * iteration, _LEAST)
                if seconds > self.ratio * others and seconds - others > enough:
                    found.append(Slow(process, section, seconds, others, iteration, host))
        return found


class _First(Hook):
    """Notes when an iteration has its batch, and when its step is done, before other hooks do anything."""

    priority = 0

    def __init__(self) -> None:
        self.began = self.stepped = 0.0

    def before_train_iter(self) -> None:
        self.began = perf_counter()

    def after_train_iter(self) -> None:
        self.stepped = perf_counter()

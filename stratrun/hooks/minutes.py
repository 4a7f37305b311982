"""Intervals by the clock that end everywhere at the same iteration."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stratrun.context import RunContext


class AgreedClock:
    """Says when a time is over, by the mean of the clocks of all processes of the run.

    The mean is taken only at iterations that follow from earlier means, and so are the same
    everywhere: after one iteration, and then after as many again as were done since the interval began,
    or half of those that are left at the pace so far, whichever comes first. So an interval
    of n iterations costs about 2 log2(n) exchanges.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self.start(0)

    def start(self, iteration: int) -> None:
        """Begin an interval."""
        self._began = self._clock()
        self._from, self._look_at = iteration, iteration + 1

    def is_over(self, runner: RunContext) -> bool:
        """Whether the interval is over. Every process asks after each iteration."""
        if runner.iter < self._look_at:
            return False
        passed = runner.engine.mean({"seconds": self._clock() - self._began})["seconds"]
        if passed >= self._seconds:
            return True
        done = runner.iter - self._from
        left = done * (self._seconds - passed) / passed if passed > 0 else inf
        self._look_at = runner.iter + max(1, int(min(done, left / 2)))
        return False

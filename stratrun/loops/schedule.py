"""When to validate, and how long an accumulation window is: arithmetic without a run."""

from bisect import bisect_right
from collections.abc import Sequence
from math import isfinite
from typing import Any

from stratrun.errors import ConfigError


class ValSchedule:
    """Says whether to validate after so many epochs or iterations.

    Args:
        begin: First count after which to validate.
        interval: Every how many.
        dynamic: Pairs of (from this count on, this interval), in ascending order.
        unit: `epoch` or `iteration`, for messages.
    """

    def __init__(
        self,
        begin: int = 1,
        interval: int = 1,
        dynamic: Sequence[tuple[int, int]] | None = None,
        unit: str = "epoch",
    ) -> None:
        positive("val_interval", interval)
        if isinstance(begin, bool) or not isinstance(begin, int) or begin < 0:
            raise ConfigError(f"val_begin={begin!r} must be the number of an {unit}, 0 or more")
        pairs = [(0, interval), *(dynamic or ())]
        milestones = [pair[0] for pair in pairs if _is_pair(pair)]
        if len(milestones) < len(pairs) or milestones != sorted(set(milestones)):
            raise ConfigError(
                f"dynamic_intervals={dynamic!r} must be pairs of ({unit}, interval) with rising {unit}s, "
                "such as [(10, 2), (20, 1)]"
            )
        self._begin = begin
        self._milestones = milestones
        self._intervals = [pair[1] for pair in pairs]

    def interval_at(self, count: int) -> int:
        return self._intervals[bisect_right(self._milestones, count) - 1]

    def due(self, count: int, *, last: bool) -> bool:
        """Whether to validate when `count` epochs or iterations are done; always after the last."""
        return count >= self._begin and (last or count % self.interval_at(count) == 0)


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return all(isinstance(value, int) for value in pair) and pair[1] >= 1


def window(idx: int, accumulate: int, length: int | None) -> tuple[int, bool]:
    """The window that batch `idx` lies in: how many batches it has, and whether this is its last.

    Args:
        length: Batches of the epoch. None when unknown: the data may then end before the window.
    """
    start = idx - idx % accumulate
    size = accumulate if length is None else min(accumulate, length - start)
    return size, idx == start + size - 1


def positive(name: str, value: int) -> None:
    """Raises ConfigError unless `value` is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} must be a whole number above 0")


def seconds_of(name: str, minutes: Any) -> float | None:
    """An interval in seconds that was given in minutes; None for None.

    Raises:
        ConfigError: it is no number above 0.
    """
    if minutes is None:
        return None
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not number or not isfinite(minutes) or minutes <= 0:
        raise ConfigError(f"{name}={minutes!r} must be a number above 0; {name}=None turns it off")
    return 60.0 * float(minutes)

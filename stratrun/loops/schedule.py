"""When to validate, and how long an accumulation window is: arithmetic without a run."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import isfinite
from typing import Any

from stratrun.errors import ConfigError
from stratrun.optim import Extent


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
    return all(type(value) is int for value in pair) and pair[1] >= 1


def _numbered(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """An entry of a dict: keys of TOML and JSON are strings."""
    key, value = pair
    return (int(key) if isinstance(key, str) and key.isdecimal() else key), value


class Accumulation:
    """How many batches make an update: a function of the counters alone.

    Args:
        spec: A number, or pairs of (epoch or iteration, number from there on), as a list or a dict. Before
            the first of them it is 1.
        unit: `epoch` or `iteration`: what milestones count, and what the methods are given.
    """

    def __init__(self, spec: Any = 1, unit: str = "epoch") -> None:
        if not isinstance(spec, Mapping | list | tuple):
            positive("accumulate", spec)
            spec = [(0, spec)]
        pairs = [_numbered(pair) for pair in spec.items()] if isinstance(spec, Mapping) else list(spec)
        milestones = [pair[0] for pair in pairs if _is_pair(pair) and pair[0] >= 0]
        if not pairs or len(milestones) < len(pairs) or milestones != sorted(set(milestones)):
            raise ConfigError(
                f"accumulate={spec!r} must be a whole number above 0, or pairs of ({unit}, batches of an "
                f"update from there on) with rising {unit}s, such as [(0, 1), (5, 4)] or {{0: 1, 5: 4}}"
            )
        # What is no change ends no window.
        stages = [(0, 1)] if milestones[0] else []
        for milestone, number in pairs:
            if not stages or stages[-1][1] != number:
                stages.append((milestone, number))
        self._milestones = [milestone for milestone, _ in stages]
        self._numbers = [number for _, number in stages]

    def at(self, count: int) -> int:
        """Batches of an update that begins when `count` epochs or iterations are done."""
        return self._numbers[bisect_right(self._milestones, count) - 1]

    def since(self, count: int) -> int:
        """The milestone from which on it is what it is at `count`."""
        return self._milestones[bisect_right(self._milestones, count) - 1]

    def until(self, count: int) -> int | None:
        """The next milestone after `count`; None when nothing changes any more."""
        later = bisect_right(self._milestones, count)
        return self._milestones[later] if later < len(self._milestones) else None

    def windows(self, begin: int, end: int) -> int:
        """How many windows there are in a pass over the data, between the counts of two iterations."""
        cuts = [begin, *(one for one in self._milestones if begin < one < end), end]
        return sum(-((a - b) // self.at(a)) for a, b in pairwise(cuts))

    @property
    def most(self) -> int:
        return max(self._numbers)

    @property
    def plain(self) -> int | list[list[int]]:
        """The number, if it is always the same; else pairs."""
        pairs = zip(self._milestones, self._numbers, strict=True)
        return self._numbers[0] if len(self._numbers) == 1 else [list(pair) for pair in pairs]


def changing_epochs(accumulation: Accumulation, epochs: int, batches: int | None) -> Extent:
    """How long a training of whole epochs is, of which not all have as many updates."""
    if batches is None:
        return Extent(epochs=epochs)
    ends = tuple(accumulate(-(-batches // accumulation.at(one)) for one in range(epochs)))
    return Extent(epochs, ends[-1], ends=ends)


def changing_iters(accumulation: Accumulation, iters: int, batches: int | None) -> Extent:
    """How long a training of so many iterations is, over epochs of `batches`."""
    if not batches:
        return Extent()
    begins = range(0, iters, batches)
    ends = list(accumulate(accumulation.windows(one, min(one + batches, iters)) for one in begins))
    return Extent(len(ends), ends[-1], ends=tuple(ends[: iters // batches]))


def accumulation_of(train_cfg: Any) -> Accumulation:
    """What `train_cfg` says; one batch for each update where it is silent, or speaks of something else."""
    spec = train_cfg.get("accumulate", 1) if isinstance(train_cfg, Mapping) else 1
    try:
        return Accumulation(spec)
    except ConfigError:  # of a loop of the user's, which checks what it is given itself
        return Accumulation()


def window(idx: int, accumulate: int, length: int | None, begin: int = 0) -> tuple[int, bool]:
    """The window that batch `idx` lies in: how many batches it has, and whether this is its last.

    Args:
        length: Where the last window ends, be it that the data ends there or that `accumulate` changes.
            None when unknown: the data may then end before the window.
        begin: The batch that the first window begins with.
    """
    start = idx - (idx - begin) % accumulate
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

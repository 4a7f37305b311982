"""Values of training steps, kept unread until somebody wants their mean."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from stratrun.loggers.record import check_numbers, is_number
from stratrun.loggers.unread import Taken, Unread, number_of

Sums = dict[str, list[float]]
"""By name: the sum of value times weight, and the sum of weights."""

_SUMS = ("window", "epoch")
# How many values of one name wait to be read: a run that never logs must not keep all of its own.
WAITING = 16384


class Exchange(Protocol):
    """The ranks, as far as means need them; with one rank both calls are the identity."""

    def sum(self, tensor: Tensor) -> Tensor: ...
    def gather(self, obj: Any) -> list[Any]: ...


class RecordBuffer:
    """Means over iterations, samples and ranks, of whatever steps give.

    `add` formats no number, and reads a tensor only where nobody else has for thousands of iterations.
    `window` and `epoch` are collective: every rank calls them at the same iteration. Each costs one read
    from the device and one exchange of sums; names are exchanged as well, but only when some rank has a
    new one.
    """

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._exchange = exchange
        self._length: int | None = None
        self._unread = Unread()
        self._series: dict[str, _Series] = {}
        self._latest: dict[str, Taken] = {}
        self._asked: list[Mapping[str, list[float]]] = []
        # Names that every rank knows, in the order in which their sums are exchanged.
        self._agreed: list[str] = []

    @property
    def length(self) -> int | None:
        """`window` gives means over so many last iterations; None: since it was last called."""
        return self._length

    @length.setter
    def length(self, length: int | None) -> None:
        self._length = length
        for series in self._series.values():
            series.recent = deque(series.recent, length)

    def add(self, values: Mapping[str, Any], size: Any = None) -> None:
        """Take the values of one iteration; what is no single number is passed over.

        Args:
            size: Weight of these values in every mean, the number of samples behind them. None
                counts the iteration as one; zero leaves it out.
        """
        weight = 1.0 if size is None else float(size) if type(size) is int else self._unread.take(size)
        known, series = self._series, None
        for name, value in values.items():
            if isinstance(value, Tensor):
                if value.numel() != 1 or value.is_complex():
                    continue
                taken = self._unread.take(value)
            elif type(value) is float:
                taken = value
            elif is_number(value):
                taken = float(value)
            else:
                continue
            series = known.get(name)
            if series is None:
                series = known[name] = _Series(self._length)
            series.values.append(taken)
            series.weights.append(weight)
        if series is not None and len(series.values) >= WAITING:
            self.settle()

    def ask(self, lists: Mapping[str, list[float]]) -> None:
        """Take and empty these lists whenever values are read: of one number for each iteration.

        For whoever has some in each iteration, and no time to lose. `settle` keeps them short.
        """
        if not any(lists is one for one in self._asked):
            self._asked.append(lists)

    def put(self, values: Mapping[str, Any]) -> None:
        """Have values in the next window as they are, neither averaged nor exchanged."""
        check_numbers(values)
        for name, value in values.items():
            self._latest[name] = self._unread.take(value)

    def window(self, *, ends: bool = True) -> dict[str, float]:
        """Means since the last call, or over the last `length` iterations; then a new window.

        Args:
            ends: False to go on with this window: to look at what it has when a run is broken off,
                which another may take up again.
        """
        latest, self._latest = self.settle(), {}
        sums = {}
        for name, series in self._series.items():
            sums[name] = series.window if self._length is None else _sums_of(series.recent)
            if ends:
                series.window = [0.0, 0.0]
        return {**self._means(sums), **latest}

    def epoch(self) -> dict[str, float]:
        """Means since the last call, which the end of an epoch makes; then a new epoch."""
        self.settle()
        sums = {name: series.epoch for name, series in self._series.items()}
        for series in self._series.values():
            series.epoch = [0.0, 0.0]
        return self._means(sums)

    def state_dict(self) -> dict[str, Any]:
        """What this rank has summed: plain numbers, exact to the bit. Reads from the device."""
        latest = self.settle()
        series = {
            name: {
                "window": list(one.window),
                "epoch": list(one.epoch),
                "recent": [list(pair) for pair in one.recent],
            }
            for name, one in self._series.items()
        }
        return {"series": series, "latest": latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unread, self._series, self._latest = Unread(), {}, dict(state["latest"])
        for name, saved in state["series"].items():
            series = self._series[name] = _Series(self._length)
            series.window, series.epoch = list(saved["window"]), list(saved["epoch"])
            # Cut to `length` when that is set, which may be after this.
            series.recent = deque(((value, weight) for value, weight in saved["recent"]), self._length)

    def settle(self) -> dict[str, float]:
        """Read all that waits into the running sums; returns what was `put`.

        Values are added one by one in the order of the steps, so the sums are the same to the
        bit however often this happens in between: a checkpoint changes no mean.
        """
        for lists in self._asked:
            for name, taken in lists.items():
                series = self._series.setdefault(name, _Series(self._length))
                series.values += taken
                series.weights += [1.0] * len(taken)
                taken.clear()
        numbers = self._unread.read()
        for series in self._series.values():
            series.fold(numbers, keep_recent=self._length is not None)
        latest = {name: number_of(taken, numbers) for name, taken in self._latest.items()}
        self._latest = dict(latest)
        return latest

    def _means(self, sums: Sums) -> dict[str, float]:
        if self._exchange is not None:
            sums = self._over_ranks(self._exchange, sums)
        return {name: total / weight for name, (total, weight) in sums.items() if weight}

    def _over_ranks(self, exchange: Exchange, sums: Sums) -> Sums:
        news = sums.keys() - set(self._agreed)
        # Nothing is agreed at first, so that every rank knows that every rank has news.
        summed = self._exchanged(exchange, sums, bool(news)) if self._agreed else None
        if summed is None:
            names = {name for rank in exchange.gather(list(sums)) for name in rank}
            self._agreed += sorted(names - set(self._agreed))
            summed = self._exchanged(exchange, sums, False) or {}
        in_order_met = dict.fromkeys([*sums, *self._agreed])
        return {name: summed[name] for name in in_order_met}

    def _exchanged(self, exchange: Exchange, sums: Sums, news: bool) -> Sums | None:
        """Sums over the ranks, or None if a rank has a name that is not agreed yet."""
        pairs = [sums.get(name, (0.0, 0.0)) for name in self._agreed]
        flat = [float(news), *(number for pair in pairs for number in pair)]
        somebodys_news, *totals = exchange.sum(torch.tensor(flat, dtype=torch.float64)).tolist()
        if somebodys_news:
            return None
        return {name: totals[2 * i : 2 * i + 2] for i, name in enumerate(self._agreed)}


def merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `state_dict` returned on each rank as the state of one, on which the others begin with nothing.

    What was `put` is that of the first: it is never exchanged.
    """
    series: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for state in states for name in state["series"]):
        parts = [state["series"][name] for state in states if name in state["series"]]
        series[name] = {
            **{
                key: [sum(numbers) for numbers in zip(*(part[key] for part in parts), strict=True)]
                for key in _SUMS
            },
            "recent": _recent_of([part["recent"] for part in parts]),
        }
    return {"series": series, "latest": dict(states[0]["latest"]) if states else {}}


def _recent_of(parts: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The last values of several ranks as one for each iteration, the newest of which is the last of each."""
    together = []
    for pairs in zip_longest(*map(reversed, parts), fillvalue=(0.0, 0.0)):
        total, weight = _sums_of((value, weight) for value, weight in pairs)
        together.append([total / weight if weight else 0.0, weight])
    return together[::-1]


def _sums_of(recent: Iterable[tuple[float, float]]) -> list[float]:
    counted = [(value, weight) for value, weight in recent if weight]
    return [sum(value * weight for value, weight in counted), sum(weight for _, weight in counted)]


class _Series:
    """What was logged under one name: sums, and numbers that are not in them yet."""

    __slots__ = ("epoch", "recent", "values", "weights", "window")

    def __init__(self, length: int | None) -> None:
        self.values: list[Taken] = []
        self.weights: list[Taken] = []
        self.window = [0.0, 0.0]
        self.epoch = [0.0, 0.0]
        self.recent: deque[tuple[float, float]] = deque(maxlen=length)

    def fold(self, numbers: list[float], keep_recent: bool) -> None:
        """Add to the sums what is not in them yet."""
        (window, window_weight), (epoch, epoch_weight) = self.window, self.epoch
        values = [number_of(taken, numbers) if type(taken) is int else taken for taken in self.values]
        weights = [number_of(taken, numbers) if type(taken) is int else taken for taken in self.weights]
        for value, weight in zip(values, weights, strict=True):
            if keep_recent:
                self.recent.append((value, weight))
            # Left out rather than multiplied by zero: a repeated sample may well give nan.
            if weight:
                weighted = value * weight
                window += weighted
                window_weight += weight
                epoch += weighted
                epoch_weight += weight
        self.window, self.epoch = [window, window_weight], [epoch, epoch_weight]
        self.values, self.weights = [], []

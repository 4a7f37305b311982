"""How numbers are shown to people."""

import math
import re
from collections.abc import Iterable, Mapping

from stratrun.loggers.record import Record

_FIRST = ("lr", "loss")
_LAST = ("time", "data_time", "data_share", "eta", "memory")
_RATES = 4
"""Learning rates of so many groups are shown each."""
_BREAKS = re.compile(r"[\s=\x00-\x1f\x7f]+")


def number(value: float) -> str:
    """Four digits that count, without an exponent where one can do without.

    >>> number(0.312449), number(12), number(123456.7), number(0.0000123)
    ('0.3124', '12', '123457', '1.23e-05')
    """
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if 1e3 <= abs(value) < 1e15:
        return f"{value:.1f}" if abs(value) < 1e4 else f"{value:.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(75), duration(90061)
    ('0:01:15', '25:01:01')
    """
    if not math.isfinite(seconds):
        return str(seconds)
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def in_order(names: Iterable[str]) -> list[str]:
    """Names as a reader looks for them: learning rate and loss first, times and memory last."""

    def place(name: str) -> int:
        for first in _FIRST:
            if name == first or name.startswith((f"{first}/", f"{first}_")):
                return _FIRST.index(first) - len(_FIRST)
        name = name.removesuffix("_epoch")
        return _LAST.index(name) + 1 if name in _LAST else 0

    return sorted(names, key=place)


def for_people(values: Mapping[str, float]) -> dict[str, float]:
    """The same, with the least and the greatest alone of many learning rates, which files have by name."""
    rates = [value for name, value in values.items() if name.startswith("lr/")]
    if len(rates) <= _RATES:
        return dict(values)
    others = {name: value for name, value in values.items() if not name.startswith("lr/")}
    return {"lr/min": min(rates), "lr/max": max(rates), **others}


def shown(name: str, value: float) -> str:
    """The value called `name`, as its kind is read best."""
    if name == "eta":
        return duration(value)
    if name == "data_share":
        return f"{value:.0%}"
    if name == "memory":
        return f"{value:.0f}"
    if name.removesuffix("_epoch") in ("time", "data_time"):
        return f"{value:.3g}" if value >= 1e-3 else f"{value:.6f}"
    return number(value)


def is_epoch_mean(record: Record) -> bool:
    return any(name.endswith("_epoch") for name in record.values)


class Place:
    """How far a run is, in the words of a console line."""

    def __init__(self) -> None:
        self.max_epochs: int | None = None
        self.max_iters: int | None = None

    def epoch(self, record: Record) -> str:
        """``3/10``; empty when training does not go by epochs."""
        if self.max_epochs is None:
            return ""
        # Counters are of finished work; a reader wants the epoch that is under way.
        under_way = record.kind in ("train", "progress") and not is_epoch_mean(record)
        return f"{min(record.epoch + under_way, self.max_epochs)}/{self.max_epochs}"

    def iter(self, record: Record) -> str:
        """``150/570``; empty before any training."""
        if not record.iter and self.max_iters is None:
            return ""
        return str(record.iter) if self.max_iters is None else f"{record.iter}/{self.max_iters}"


def plain_line(record: Record, place: Place, clock: str) -> str:
    """A record as ``key=value`` words, to be read by people and by `line.split()`."""
    words = {"at": clock, "kind": record.kind, "epoch": place.epoch(record), "iter": place.iter(record)}
    values = for_people(record.values)
    words.update({name: shown(name, values[name]) for name in in_order(values)})
    # Names are the user's own, and must not break the line into other words.
    return " ".join(f"{_BREAKS.sub('_', key)}={word}" for key, word in words.items() if word)

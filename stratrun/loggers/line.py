"""One line that is shown anew as training goes on: what it says, wherever it is shown."""

import time
from abc import ABC, abstractmethod

from rich.text import Text

from stratrun.loggers.record import PROGRESS, Record
from stratrun.loggers.text import Place, for_people, in_order, is_epoch_mean, shown

_BAR = 20


class Line(ABC):
    """Takes records, and shows the newest state of training; results stay beside it.

    It is drawn by whoever calls it: no thread of its own that could hold a lock while the loader
    forks its workers.
    """

    every_seconds: float
    """How long to wait between two drawings."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._record = Record("train", {})
        self._stage = ""
        self._values: dict[str, float] = {}
        self._drawn = float("-inf")

    def show(self, record: Record) -> None:
        """Let a result stay, or take over what the line shows."""
        if record.kind == "train" and not is_epoch_mean(record):
            self._values.update(record.values)
            self.beat(record)
        else:
            self._record, self._stage = record, ""
            self._stay(_result(record, self._place))

    def say(self, text: str) -> None:
        self._stay(Text(text))

    def beat(self, record: Record) -> None:
        """Take over the counters, and draw unless that was done just now."""
        self._record = record
        if record.kind == PROGRESS:
            self._stage = "".join(f"{stage} {batch:.0f}  " for stage, batch in _stages(record))
        now = time.monotonic()
        if now - self._drawn >= self.every_seconds:
            self._drawn = now
            self._draw()

    @abstractmethod
    def stop(self) -> None:
        """Draw for the last time."""

    @abstractmethod
    def _stay(self, text: Text) -> None:
        """Print what is not drawn over."""

    @abstractmethod
    def _draw(self) -> None:
        """Show the line as it is now."""

    def _render(self, width: int) -> Text:
        """What a narrow line cuts off is what matters least."""
        record, place = self._record, self._place
        line = Text(no_wrap=True)
        if epoch := place.epoch(record):
            line.append(f"epoch {epoch}  ", style="bold")
        if place.max_iters:
            line.append_text(_bar(record.iter / place.max_iters)).append("  ")
        if iteration := place.iter(record):
            line.append(f"{iteration}  ")
        line.append(self._stage, style="cyan")
        values = dict(self._values)
        if "eta" in values:
            line.append_text(_details({"eta": values.pop("eta")}))
        line.append_text(_details(values)).rstrip()
        line.truncate(width - 1, overflow="ellipsis")
        return line


def _result(record: Record, place: Place) -> Text:
    text = Text(f"{record.kind:<5}", style="bold")
    for word, value in (("epoch", place.epoch(record)), ("iter", place.iter(record))):
        if value:
            text.append(f"  {word} {value}", style="dim")
    return text.append_text(Text("  ")).append_text(_details(record.values))


def _stages(record: Record) -> list[tuple[str, float]]:
    """Evaluation under way: its name, and how many batches of it are done."""
    return [(name, n) for name, n in record.values.items() if name in ("val", "test", "predict")]


def _details(values: dict[str, float]) -> Text:
    text, values = Text(), for_people(values)
    for name in in_order(values):
        text.append(f"{name} ", style="dim").append(f"{_with_unit(name, values[name])}  ")
    return text


def _with_unit(name: str, value: float) -> str:
    if name.removesuffix("_epoch") in ("time", "data_time"):
        if value >= 1:
            return f"{value:.3g} s"
        return f"{value * 1e3:.3g} ms" if value >= 1e-4 else f"{value * 1e3:.2f} ms"
    return f"{shown(name, value)} MiB" if name == "memory" else shown(name, value)


def _bar(done: float) -> Text:
    full = round(min(max(done, 0.0), 1.0) * _BAR)
    return Text("━" * full, style="green").append("─" * (_BAR - full), style="dim")

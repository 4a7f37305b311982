"""One line of a terminal, drawn again and again."""

import atexit
import os
import sys
import time
import weakref
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from stratrun.loggers.record import PROGRESS, Record
from stratrun.loggers.text import Place, for_people, in_order, is_epoch_mean, shown

_DRAW_SECONDS = 0.1
_BAR = 20


class LiveLine:
    """Shows training as it goes; what should stay is printed above it.

    It is drawn by whoever calls it: no thread of its own that could hold a lock while the loader
    forks its workers. While it is shown, what others print goes above it.
    """

    def __init__(self, place: Place, stream: TextIO | None = None) -> None:
        self._place = place
        self._stream = stream
        self._live: Live | None = None
        self._streams: tuple[Any, Any] = (None, None)
        self._record = Record("train", {})
        self._stage = ""
        self._values: dict[str, float] = {}
        self._drawn = 0.0
        _lines.add(self)

    def show(self, record: Record) -> None:
        """Print a result above the line, or take over what the line shows."""
        if record.kind == "train" and not is_epoch_mean(record):
            self._values.update(record.values)
            self.beat(record)
        else:
            self._stage = ""
            self._console().print(_result(record, self._place), soft_wrap=True)

    def say(self, text: str) -> None:
        self._console().print(Text(text), soft_wrap=True)

    def beat(self, record: Record) -> None:
        """Take over the counters, and draw unless that was done just now."""
        self._record = record
        if record.kind == PROGRESS:
            self._stage = "".join(f"{stage} {batch:.0f}  " for stage, batch in _stages(record))
        now = time.monotonic()
        if now - self._drawn >= _DRAW_SECONDS:
            self._drawn = now
            live = self._started()
            live.update(self._render(live.console.width), refresh=True)

    def stop(self) -> None:
        """Draw for the last time, and give the terminal back."""
        live, self._live = self._live, None
        if live is not None:
            self._stage = ""
            live.update(self._render(live.console.width))
            live.stop()
            self.release()
            atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        # The terminal may have been closed before.
        with suppress(OSError, ValueError):
            self.stop()

    def release(self) -> None:
        """Give back the standard streams."""
        for name, original in zip(("stdout", "stderr"), self._streams, strict=True):
            if original is not None and getattr(getattr(sys, name), "rich_proxied_file", None) is original:
                setattr(sys, name, original)
        self._streams = (None, None)

    def _console(self) -> Console:
        if self._live is not None:
            return self._live.console
        return Console(file=self._stream or sys.stdout, highlight=False, force_terminal=True)

    def _started(self) -> Live:
        if self._live is None:
            console = self._console()
            self._live = Live(
                console=console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._live.start()
            # The cursor is hidden; whatever ends the program must not leave it so.
            atexit.register(self._stop_at_exit)
            if self._stream is None:
                self._redirect(console)
        return self._live

    def _redirect(self, console: Console) -> None:
        stdout, stderr = sys.stdout, sys.stderr
        self._streams = (stdout, stderr if stderr.isatty() else None)
        sys.stdout = FileProxy(console, stdout)
        if stderr.isatty():
            sys.stderr = FileProxy(console, stderr)

    def _render(self, width: int) -> Text:
        """What a narrow terminal cuts off is what matters least."""
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


_lines: "weakref.WeakSet[LiveLine]" = weakref.WeakSet()


def _leave_child() -> None:
    """A forked loader worker must not draw on the terminal of its parent."""
    for line in list(_lines):
        line.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_child)

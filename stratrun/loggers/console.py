import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from stratrun.loggers.base import Logger
from stratrun.loggers.record import PARAMETERS, PROGRESS, Record
from stratrun.loggers.text import Place, is_epoch_mean, plain_line
from stratrun.registry import LOGGERS

if TYPE_CHECKING:
    from stratrun.loggers.live import LiveLine


@LOGGERS.register_module("console")
class ConsoleLogger(Logger):
    """What a person watches: one live line on a terminal, plain lines anywhere else.

    Plain lines are `key=value` words without control characters. Epoch means and results of
    evaluations are always shown; of other training lines one in `every_seconds`, and the last.

    Args:
        live: Whether to draw a live line; None asks the stream whether it is a terminal.
    """

    shows_progress = True

    def __init__(
        self, every_seconds: float = 10.0, live: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self.every_seconds = every_seconds
        self.live = live
        self._stream = stream
        self._place = Place()
        self._line: LiveLine | None = None
        self._printed = float("-inf")
        self._held: Record | None = None

    def open(self, folder: Path) -> None:
        if self.live if self.live is not None else _is_terminal(self._stream or sys.stdout):
            from stratrun.loggers.live import LiveLine

            self._line = LiveLine(self._place, self._stream)

    def log(self, record: Record) -> None:
        if record.kind == PROGRESS:
            self._progress(record)
        elif record.kind == PARAMETERS:
            return
        elif self._line is not None:
            self._line.show(record)
        elif record.kind != "train" or is_epoch_mean(record):
            self._held = None
            self._print(record)
        elif time.monotonic() - self._printed >= self.every_seconds:
            self._printed, self._held = time.monotonic(), None
            self._print(record)
        else:
            self._held = record

    def say(self, text: str) -> None:
        if self._line is not None:
            self._line.say(text)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._held is not None:
            self._print(self._held)
            self._held = None
        if self._line is not None:
            self._line.stop()

    def _progress(self, record: Record) -> None:
        """Take totals, redraw the live line, or end it: see `LoggerHook`."""
        values = record.values
        if "max_iters" in values:
            self._place.max_iters = int(values["max_iters"]) or None
            self._place.max_epochs = int(values["max_epochs"]) or None
        if "done" in values:
            self.close()
        elif self._line is not None:
            self._line.beat(record)

    def _print(self, record: Record) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.time))
        print(plain_line(record, self._place, clock), file=self._stream, flush=True)


def _is_terminal(stream: TextIO) -> bool:
    """Whether a line can be drawn there again and again, with the characters that it is made of."""
    drawable = os.environ.get("TERM", "") not in ("dumb", "unknown")
    return drawable and stream.isatty() and stream.encoding.lower().startswith("utf")

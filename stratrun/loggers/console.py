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
    from stratrun.loggers.line import Line


@LOGGERS.register_module("console")
class ConsoleLogger(Logger):
    """What a person watches: one live line on a terminal or in a notebook, plain lines anywhere else.

    Plain lines are `key=value` words without control characters. Results of evaluations are always shown; of
    training one line in `every_seconds`, the newest mean of an epoch before all others, and the last.

    Args:
        live: Whether to draw a live line; None asks the stream whether it is a terminal, and the
            interpreter whether it is that of a notebook.
    """

    shows_progress = True

    def __init__(
        self, every_seconds: float = 10.0, *, live: bool | None = None, stream: TextIO | None = None
    ) -> None:
        self.every_seconds = every_seconds
        self.live = live
        self._stream = stream
        self._place = Place()
        self._line: Line | None = None
        # When the last line of training was printed, and the last mean of an epoch.
        self._printed = self._told_mean = float("-inf")
        self._held: Record | None = None
        self._mean: Record | None = None

    def open(self, folder: Path) -> None:
        if self.live is not False and self._stream is None and in_notebook():
            from stratrun.loggers.notebook import NotebookLine

            self._line = NotebookLine(self._place)
        elif self.live if self.live is not None else _is_terminal(self._stream or sys.stdout):
            from stratrun.loggers.live import LiveLine

            self._line = LiveLine(self._place, self._stream)

    def log(self, record: Record) -> None:
        if record.kind == PROGRESS:
            self._progress(record)
        elif record.kind == PARAMETERS:
            return
        elif self._line is not None:
            self._line.show(record)
        elif record.kind == "train":
            self._train(record)
        else:
            if self._mean is not None and time.monotonic() - self._told_mean >= self.every_seconds:
                self._tell(self._mean)
            self._held = None
            self._print(record)

    def say(self, text: str) -> None:
        if self._line is not None:
            self._line.say(text)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        last = self._mean or self._held
        if last is not None:
            self._tell(last)
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

    def _train(self, record: Record) -> None:
        """Print a line, if none was just now: the mean of an epoch, if there is one that was not told."""
        if is_epoch_mean(record):
            self._mean = record
        else:
            self._held = record
        if time.monotonic() - self._printed >= self.every_seconds:
            self._tell(self._mean or record)

    def _tell(self, record: Record) -> None:
        self._printed, self._held = time.monotonic(), None
        if record is self._mean:
            self._told_mean, self._mean = self._printed, None
        self._print(record)

    def _print(self, record: Record) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.time))
        print(plain_line(record, self._place, clock), file=self._stream, flush=True)


def _is_terminal(stream: TextIO) -> bool:
    """Whether a line can be drawn there again and again, with the characters that it is made of."""
    drawable = os.environ.get("TERM", "") not in ("dumb", "unknown")
    return drawable and stream.isatty() and stream.encoding.lower().startswith("utf")


def in_notebook() -> bool:
    """Whether this interpreter is a notebook's: what is printed goes to a page, not to a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None

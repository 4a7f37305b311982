"""The line on a terminal."""

import atexit
import os
import sys
import weakref
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from stratrun.loggers.line import Line
from stratrun.loggers.text import Place


class LiveLine(Line):
    """Shows training as it goes; what should stay is printed above it, what others print too."""

    every_seconds: float = 0.1

    def __init__(self, place: Place, stream: TextIO | None = None) -> None:
        super().__init__(place)
        self._stream = stream
        self._live: Live | None = None
        self._streams: tuple[Any, Any] = (None, None)
        _lines.add(self)

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

    def _stay(self, text: Text) -> None:
        self._console().print(text, soft_wrap=True)

    def _draw(self) -> None:
        live = self._started()
        live.update(self._render(live.console.width), refresh=True)

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


_lines: "weakref.WeakSet[LiveLine]" = weakref.WeakSet()


def _leave_child() -> None:
    """A forked loader worker must not draw on the terminal of its parent."""
    for line in list(_lines):
        line.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_child)

"""Signals that ask a job to end, for as long as it runs."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from stratrun.data import worker_signals

# A launcher passes on what its whole group of processes has got as well: all within this many
# seconds is one and the same signal.
_ECHO = 2.0


class SignalTrap:
    """Notes the first signal, and ends the process at the second.

    What the signals did before is put back by `release`. One that is ignored stays so, and a
    handler of somebody else's is called too.

    Args:
        note: Called once, from within whatever is being done: it may only set flags.
        launched: Whether a launcher started this process, which passes signals on.
        prompt: Whether somebody at a prompt started the job: a second Ctrl-C takes them back to it.
    """

    def __init__(
        self, numbers: Sequence[int], note: Callable[[int], None], *, launched: bool, prompt: bool
    ) -> None:
        self._numbers = numbers
        self._note = note
        self._echo = _ECHO if launched else 0.0
        self._prompt = prompt
        self._process = os.getpid()
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def set(self) -> str:
        """Take the signals. Returns why not, if that cannot be done."""
        if not self._numbers:
            return ""
        if threading.current_thread() is not threading.main_thread():
            return "signals do not stop it: it was started in a thread, and only the main one gets them"
        for number in self._numbers:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return ""

    def release(self) -> None:
        """Put back what was there."""
        for number, before in self._before.items():
            # None for one that was not set from Python: there is no putting it back.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if os.getpid() != self._process:
            # Those that read data for the job, be it for a loader of the user's, are let go by it.
            if worker_signals.is_worker_of(self._process):
                return
            # Any other process that the job has forked is none of it, and goes as it would have gone.
            signal.signal(number, signal.SIG_DFL if before is None else before)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._note(number)
            self._say(number)
        elif self._prompt and number == signal.SIGINT:
            raise KeyboardInterrupt
        elif now - self._first >= self._echo:
            os._exit(128 + number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def _say(self, number: int) -> None:
        if os.isatty(2):
            name = signal.Signals(number).name
            os.write(2, f"\nstratrun: {name}: stopping and saving; once more to leave at once\n".encode())

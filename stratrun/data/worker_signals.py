"""Signals in the workers of a loader: whoever ends a job ends the process that reads from them."""

import signal
from types import FrameType

_OTHERS = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def ignore() -> None:
    """Leave signals to the main process. Called in a worker.

    A terminal and a queue send them to each process of a job, and the last batches are still asked for.
    The second SIGTERM counts: torch sends it to a worker that does not end.
    """
    for name in _OTHERS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _once)


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)

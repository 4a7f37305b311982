"""Signals in the workers of a loader: whoever ends a job ends the process that reads from them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_bool
from functools import cache
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

_OTHERS = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


@contextmanager
def stay(wished: bool = True) -> Iterator[None]:
    """Workers stay on when all processes of a job are asked to end; `wished=False` while they are let go."""
    in_job = _in_job_of(os.getpid())
    before, in_job.value = in_job.value, wished
    try:
        yield
    finally:
        in_job.value = before


def is_worker_of(process: int) -> bool:
    """Whether this is a process that a job under way in another has started to work for it."""
    started = multiprocessing.parent_process() is not None
    return started and os.getpid() != process and bool(_in_job_of(process).value)


class Ignore:
    """Leaves signals to the main process. Called in a worker.

    A terminal and a queue send them to each process of a job, and the last batches are still asked for.
    SIGTERM is also what the loader ends workers by, and the interpreter as it exits, which then waits
    for them: it is left alone during a job only.
    """

    def __init__(self) -> None:
        self._in_job = _in_job_of(os.getpid())

    def __call__(self) -> None:
        for name in _OTHERS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._unless_meant)

    def _unless_meant(self, number: int, frame: FrameType | None) -> None:
        if not self._in_job.value:
            # As torch answers it: a death by the signal would be told as a failure by who asks for the end.
            os._exit(0)


class FirstCall:
    """First call in a worker of a loader of the user's, and then what they have it call."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then
        self._ignore = Ignore()

    def __call__(self, worker_id: int) -> None:
        self._ignore()
        if self._then is not None:
            self._then(worker_id)


def leave_alone(loader: Any) -> None:
    """Have workers that a loader of the user's starts from now on leave signals to the main process."""
    if not getattr(loader, "num_workers", 0) or not hasattr(loader, "worker_init_fn"):
        return
    if not isinstance(loader.worker_init_fn, FirstCall):
        loader.worker_init_fn = FirstCall(loader.worker_init_fn)


@cache
def _in_job_of(process: int) -> Any:
    """Memory that this process shares with its workers: whether a job is under way."""
    return RawValue(c_bool, False)

"""Python's collector of garbage at times that do not fall into a step: ``env_cfg=dict(gc="paused")``.

By itself it starts wherever some hundred objects were made, on each rank at another iteration, and from time
to time goes through all objects that there are: with torch's, a tenth of a second, for which all ranks wait.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import ClassVar

from stratrun.hooks import Hook
from stratrun.hooks.base import PRIORITIES

AT_MOST = 100_000
"""Objects that may be made, beyond those dropped, before it starts by itself after all: where nothing is
logged, and no epoch ends."""
_SECONDS = 60.0


class CollectorHook(Hook):
    """Collects the youngest objects where values are logged, and all of them between epochs."""

    priority: ClassVar[int] = PRIORITIES["LOWEST"]

    def __init__(self) -> None:
        self._all_at = perf_counter()

    def after_log(self) -> None:
        gc.collect(1)

    def after_train_epoch(self) -> None:
        self._collect()

    def before_val(self) -> None:
        self._collect()

    def _collect(self) -> None:
        # All of them once a minute at most, as epochs may be short.
        if perf_counter() - self._all_at < _SECONDS:
            gc.collect(1)
            return
        gc.collect()
        self._all_at = perf_counter()


@contextmanager
def collecting(mode: str) -> Iterator[None]:
    """Have the collector wait, but for far more objects than a step leaves; as it was afterwards."""
    before = gc.get_threshold()
    # Who has it off, or waiting for more, keeps that.
    if mode != "paused" or not gc.isenabled() or not 0 < before[0] < AT_MOST:
        yield
        return
    gc.set_threshold(AT_MOST, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)

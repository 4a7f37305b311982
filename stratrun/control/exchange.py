"""What the ranks tell each other of their wishes: a few numbers, summed beside the steps."""

import ctypes
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import torch

from stratrun.distributed import Collectives

WISHES = ("stop", "save", "validate")
# Seconds between two exchanges: where ranks share processors each takes a millisecond of the steps beside it.
EVERY = 0.25
# Not more steps than this from one to the next, as the next ones may take longer.
MOST_STEPS = 128


class Heard(NamedTuple):
    """What all ranks know alike."""

    wished: bool
    """Whether some rank has a wish."""
    broke_off: bool
    """Whether some rank has left a pass over data before its end."""
    seconds: float
    """Mean of the ranks' clocks."""


class Exchange:
    """One sum at a time, under way while the ranks go on. All begin and take it at the same points.

    The numbers are written and read in memory: no operation of torch is made for that.
    """

    def __init__(self, ranks: Collectives) -> None:
        self.ranks = ranks
        self.gap: int = 1
        """Steps from one exchange to the next: the same on all ranks, by the mean time of their steps."""
        self._end: Callable[[], None] | None = None
        self._last = (0, 0.0)
        self._renew()

    @property
    def under_way(self) -> bool:
        return self._end is not None

    def start(self, iteration: int, now: float) -> None:
        """Time steps from here on, of which nothing is known yet."""
        self._last, self.gap = (iteration, now), 1

    def begin(self, iteration: int, now: float, *, wishes: bool, broke_off: bool, seconds: float) -> None:
        then, before = self._last
        step_seconds = 0.0
        if iteration > then:
            step_seconds = (now - before) / (iteration - then)
            self._last = (iteration, now)
        self._view[:] = [float(wishes), float(broke_off), seconds, step_seconds]
        self._end = self.ranks.begin_sum(self._tensor)

    def take(self) -> Heard:
        """Wait for the sum that was begun."""
        end, self._end = self._end, None
        assert end is not None
        end()
        wished, broke_off, seconds, step_seconds = self._view
        size = self.ranks.world_size
        if step_seconds > 0:
            self.gap = max(1, min(MOST_STEPS, ceil(EVERY * size / step_seconds)))
        return Heard(wished > 0, broke_off > 0, seconds / size)

    def abandon(self) -> None:
        """Leave the sum under way to itself, with its memory."""
        if self._end is not None:
            self._end = None
            self._renew()

    def _renew(self) -> None:
        self._tensor = torch.zeros(4, dtype=torch.float64, device="cpu")
        self._view = (ctypes.c_double * 4).from_address(self._tensor.data_ptr())

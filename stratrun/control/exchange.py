"""What the ranks tell each other of their wishes: a few numbers, summed beside the steps."""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch

from stratrun.distributed import Collectives

WISHES = ("stop", "save", "validate")


class Heard(NamedTuple):
    """What all ranks know alike."""

    wished: bool
    """Whether some rank has a wish."""
    broke_off: bool
    """Whether some rank has left a pass over data before its end."""
    seconds: float
    """Mean of the ranks' clocks."""
    step_seconds: float
    """Mean time of a step."""


class Exchange:
    """One sum at a time, under way while the ranks go on. All begin and take it at the same points.

    The numbers are written and read in memory: no operation of torch is made for that.
    """

    def __init__(self, ranks: Collectives) -> None:
        self.ranks = ranks
        self._end: Callable[[], None] | None = None
        self._renew()

    @property
    def under_way(self) -> bool:
        return self._end is not None

    def begin(self, *, wishes: bool, broke_off: bool, seconds: float, step_seconds: float) -> None:
        self._view[:] = [float(wishes), float(broke_off), seconds, step_seconds]
        self._end = self.ranks.begin_sum(self._tensor)

    def take(self) -> Heard:
        """Wait for the sum that was begun."""
        end, self._end = self._end, None
        assert end is not None
        end()
        wished, broke_off, seconds, step_seconds = self._view
        size = self.ranks.world_size
        return Heard(wished > 0, broke_off > 0, seconds / size, step_seconds / size)

    def abandon(self) -> None:
        """Leave the sum under way to itself, with its memory."""
        if self._end is not None:
            self._end = None
            self._renew()

    def _renew(self) -> None:
        self._tensor = torch.zeros(4, dtype=torch.float64, device="cpu")
        self._view = (ctypes.c_double * 4).from_address(self._tensor.data_ptr())

"""What hooks may ask of the hardware beside its memory."""

from typing import TypeVar

import torch

from stratrun.accelerators.peaks import peak_of
from stratrun.engine.forward_times import ForwardTimes
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange
from stratrun.precision.base import Precision
from stratrun.strategies.base import Strategy

T = TypeVar("T")


class Gauges:
    """Figures of the work and of what does it; none of them waits for it."""

    placed: Placed
    """There once a model is placed."""
    ranks: Exchange
    """All of them, those that work on one batch together as well."""

    def __init__(self, strategy: Strategy, precision: Precision, device: torch.device) -> None:
        self._strategy = strategy
        self._precision = precision
        self._device = device

    def peak_flops(self) -> float | None:
        """What the hardware behind one batch can do in a second at most, in this number format."""
        one = peak_of(self._device, self._precision.name)
        return None if one is None else one * self._strategy.ranks_per_batch

    def of_all(self, figures: T) -> list[T]:
        """What every process has given, in their order. All call it at the same point."""
        return self.ranks.gather(figures)

    def time_forward(self) -> ForwardTimes | None:
        """Begin to time forward passes; None where those of several processes wait for each other."""
        return None if self._strategy.collective_forward else ForwardTimes(self.placed.bare, self._device)

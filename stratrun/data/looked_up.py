"""An order that is computed where it is asked for."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

_AHEAD = 2048


class LookedUp(ABC):
    """Indices by position, without being held. What was looked up last is kept.

    Args:
        samples: How many positions there are.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._known: tuple[range, list[int]] = (range(0), [])

    def at(self, positions: range) -> list[int]:
        """The indices at `positions`, which must count upwards."""
        if not positions:
            return []
        known, numbers = self._known
        if positions.step != known.step or positions[0] not in known or positions[-1] not in known:
            # The batches to come are asked for in the same steps; many are looked up as fast as one.
            stop = max(positions.stop, min(positions.start + _AHEAD * positions.step, self.samples))
            known = range(positions.start, stop, positions.step)
            steps = torch.arange(known.start, known.stop, known.step, device="cpu")
            numbers = self.look_up(steps).tolist()
            self._known = known, numbers
        first = known.index(positions[0])
        return numbers[first : first + len(positions)]

    @abstractmethod
    def look_up(self, positions: Tensor) -> Tensor:
        """The index at each of `positions`, which is not kept."""

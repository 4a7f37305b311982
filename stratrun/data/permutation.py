"""A shuffled order that is computed where it is asked for, without being held."""

import torch
from torch import Tensor

from stratrun.seed import derive_seed

_ROUNDS = 6
_MIX = 0x5851F42D4C957F2D  # odd, of 63 bits
_SMALL = 2**31 - 1
_AHEAD = 2048


class Permutation:
    """The numbers below `samples` in an order that is a function of the key.

    A Feistel network over pairs of digits, which are little less than the square root of `samples`, so that a
    pair which stands for no sample, and has to be sent through the network again, is rare.
    """

    def __init__(self, samples: int, key: int) -> None:
        self.samples = samples
        self._high = _root(samples)
        self._low = -(-samples // self._high)
        self._keys = [derive_seed(key, "round", number) for number in range(_ROUNDS)]
        # Positions that were looked up last, and what stands there.
        self._known: tuple[range, list[int]] = (range(0), [])

    def at(self, positions: range) -> list[int]:
        """The numbers at `positions`, which must count upwards."""
        if not positions:
            return []
        known, numbers = self._known
        if positions.step != known.step or positions[0] not in known or positions[-1] not in known:
            # The batches to come are asked for in the same steps; many are looked up as fast as one.
            stop = max(positions.stop, min(positions.start + _AHEAD * positions.step, self.samples))
            known = range(positions.start, stop, positions.step)
            numbers = self._looked_up(known)
            self._known = known, numbers
        first = known.index(positions[0])
        return numbers[first : first + len(positions)]

    def _looked_up(self, positions: range) -> list[int]:
        steps = torch.arange(positions.start, positions.stop, positions.step, device="cpu")
        values = self._once(steps)
        while bool((outside := values >= self.samples).any()):
            values[outside] = self._once(values[outside])
        found: list[int] = values.tolist()
        return found

    def _once(self, values: Tensor) -> Tensor:
        high, low = values // self._low, values % self._low
        for number, key in enumerate(self._keys):
            if number % 2:
                high = (high + _mixed(low, key)) % self._high
            else:
                low = (low + _mixed(high, key)) % self._low
        return high * self._low + low


def _mixed(digit: Tensor, key: int) -> Tensor:
    """A number below 2**31 that looks unlike the digit. Products wrap around at 64 bits."""
    word = (digit ^ key) * _MIX
    word = (word ^ (word >> 32)) * _MIX
    return (word >> 32) & _SMALL


def _root(samples: int) -> int:
    """The square root, rounded up."""
    root = int(samples**0.5)
    while root * root < samples:
        root += 1
    return max(root, 1)

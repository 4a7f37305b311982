"""A shuffled order that is computed where it is asked for, without being held."""

from torch import Tensor

from stratrun.data.looked_up import LookedUp
from stratrun.seed import derive_seed

_ROUNDS = 6
_MIX = 0x5851F42D4C957F2D  # odd, of 63 bits
_SMALL = 2**31 - 1


class Permutation(LookedUp):
    """The numbers below `samples` in an order that is a function of the key.

    A Feistel network over pairs of digits, which are little less than the square root of `samples`, so that a
    pair which stands for no sample, and has to be sent through the network again, is rare.
    """

    def __init__(self, samples: int, key: int) -> None:
        super().__init__(samples)
        self._high = _root(samples)
        self._low = -(-samples // self._high)
        self._keys = [derive_seed(key, "round", number) for number in range(_ROUNDS)]

    def look_up(self, positions: Tensor) -> Tensor:
        values = self._once(positions)
        while bool((outside := values >= self.samples).any()):
            values[outside] = self._once(values[outside])
        return values

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

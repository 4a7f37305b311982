"""Exchanges between ranks that have different samples, where several work on the same ones."""

from typing import TypeVar

import torch
from torch import Tensor

from stratrun.distributed.collectives import Collectives

T = TypeVar("T")


class DataRanks:
    """Groups of neighbouring ranks, each of which counts as one: its members have the same samples.

    What is given by any but the first of a group is not looked at. All ranks take part in each call.

    Args:
        ranks_per_batch: How many ranks a group has; divides the number of ranks.
    """

    def __init__(self, ranks: Collectives, ranks_per_batch: int) -> None:
        self._ranks = ranks
        self._each = ranks_per_batch

    @property
    def rank(self) -> int:
        """The number of the group."""
        return self._ranks.rank // self._each

    @property
    def world_size(self) -> int:
        """How many groups there are."""
        return self._ranks.world_size // self._each

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over groups of a CPU tensor; the argument is left alone."""
        return self._ranks.sum(tensor if self.leads else torch.zeros_like(tensor))

    def gather(self, value: T) -> list[T]:
        """Every group's value, by its number, on every rank."""
        return self._ranks.gather(value)[:: self._each]

    def gather_to_main(self, value: T) -> list[T] | None:
        """Every group's value, by its number, on the main rank; None on the others."""
        values = self._ranks.gather_to_main(value)
        return None if values is None else values[:: self._each]

    def from_main(self, value: T) -> T:
        """Give every rank the main rank's value."""
        return self._ranks.from_main(value)

    @property
    def leads(self) -> bool:
        """Whether this rank is the one of its group whose results count."""
        return self._ranks.rank % self._each == 0

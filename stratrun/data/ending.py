"""The end of an epoch over data that each rank reads for itself: the same on all of them."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

_END = object()


class Sums(Protocol):
    """What ending together needs of the ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def begin_sum(self, tensor: Tensor, /) -> Callable[[], None]: ...

    def gather(self, value: Any, /) -> list[Any]: ...


class DataEnd:
    """Ends an epoch on all ranks after the last batch that every one of them has.

    A rank that went on alone would wait for ever in the exchange of its gradients. So each says of each
    batch whether it has one. Where a batch may be read before it is asked for, that is under way during
    the step before.

    Args:
        name: What the user calls the data.
    """

    def __init__(self, ranks: Sums, name: str) -> None:
        self._ranks = ranks
        self._name = name
        self._told = False

    def over(self, batches: Iterator[Any], done: int, *, ahead: bool) -> Iterator[Any]:
        """The batches up to the last that all ranks have.

        Args:
            done: Batches of the epoch before the first of these.
            ahead: Whether one may be read while the one before it is worked on.
        """
        batch, everywhere = self._next(batches)
        while everywhere():
            coming = self._next(batches) if ahead else None
            yield batch
            done += 1
            batch, everywhere = coming or self._next(batches)
        self._tell(batch is not _END, done)

    def _next(self, batches: Iterator[Any]) -> tuple[Any, Callable[[], bool]]:
        """Read a batch, and begin to count the ranks that have one. Comes with what tells if all have."""
        batch = next(batches, _END)
        # A new one each time: a loop that is left does not wait for what is under way.
        self._having = having = torch.tensor(int(batch is not _END))
        end, size = self._ranks.begin_sum(having), self._ranks.world_size

        def everywhere() -> bool:
            end()
            return int(having) == size

        return batch, everywhere

    def _tell(self, has: bool, done: int) -> None:
        if int(self._having) == 0 or self._told:
            return
        self._told = True
        more = [str(rank) for rank, one in enumerate(self._ranks.gather(has)) if one]
        if self._ranks.rank == 0:
            who = f"rank {more[0]} has" if len(more) == 1 else f"ranks {', '.join(more)} have"
            warnings.warn(
                f"{self._name}: an epoch ended after {done} batches, which is all that some ranks have; "
                f"{who} more, left out in this epoch as in later ones; share them out evenly to use all",
                stacklevel=3,
            )

"""Which sample stands where in an epoch, and which rank takes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratrun.data.looked_up import LookedUp
from stratrun.data.permutation import Permutation
from stratrun.seed import derive_seed

LISTED = 2**22
"""Samples up to which a shuffled order is held as a list, of 8 bytes each. That of more is computed as it is
read, so that an epoch of any length begins, or is gone on with, at once."""

Order = range | Tensor | LookedUp
"""Indices of the data set by position, cheap to look up."""


def epoch_order(seed: int, epoch: int, samples: int, shuffle: bool) -> Order:
    """The order of an epoch: a function of its arguments alone, not of ranks or workers."""
    if not shuffle:
        return range(samples)
    key = derive_seed(seed, "order", epoch)
    if samples > LISTED:
        return Permutation(samples, key)
    generator = torch.Generator()
    generator.manual_seed(key)
    return torch.randperm(samples, generator=generator)


def indices_at(order: Order, positions: range) -> list[int]:
    """The indices at `positions`, which must count upwards."""
    if isinstance(order, LookedUp):
        return order.at(positions)
    chosen = order[positions.start : positions.stop : positions.step]
    return list(chosen) if isinstance(chosen, range) else chosen.tolist()


class Share(NamedTuple):
    """What one rank holds of a global batch. See `BatchInfo` for the first four."""

    size: int | None
    scale: float
    positions: Sequence[int] | None
    total: int | None
    advance: int = 0
    """How far the batch moves the cursor, the same number on every rank."""
    origin: Any = None
    """Where it comes from, if from several loaders. See `Origin`."""


def split(start: int, total: int, per_rank: int, rank: int, world_size: int, pad: bool) -> Share | None:
    """One rank's share of the global batch of `total` samples that begins at position `start`.

    Args:
        pad: Whether a rank that gets nothing takes part with a repeated sample that counts nothing.

    Returns:
        None when the rank has nothing to do.
    """
    positions = range(start + rank, start + total, world_size)
    if total == per_rank * world_size:
        return Share(per_rank, 1.0, positions, total, total)
    size = len(positions)
    if pad:
        return Share(size, size * world_size / total, positions, total, total)
    return Share(size, 1.0, positions, total, total) if size else None


@dataclass(frozen=True, slots=True)
class Plan:
    """How one rank walks through an epoch of known length, from any position."""

    samples: int
    per_rank: int
    rank: int
    world_size: int
    drop_last: bool
    pad: bool

    @property
    def global_batch(self) -> int:
        return self.per_rank * self.world_size

    def share(self, start: int) -> Share | None:
        """This rank's share of the global batch at `start`; None when the epoch is over for it."""
        total = min(self.global_batch, self.samples - start)
        if total <= 0 or (self.drop_last and total < self.global_batch):
            return None
        return split(start, total, self.per_rank, self.rank, self.world_size, self.pad)

    def shares(self, start: int) -> Iterator[Share]:
        """This rank's shares from position `start` to the end of the epoch."""
        while (share := self.share(start)) is not None:
            yield share
            start += share.advance

    def left(self, start: int) -> int:
        """Batches of this rank from position `start` on."""
        full, rest = divmod(max(self.samples - start, 0), self.global_batch)
        partial = self.share(start + full * self.global_batch) if rest else None
        return full + (partial is not None)

"""Feeds for tests: data sets that show what was read, and one feed for each rank of a run."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from stratrun.data import Feed, build_feed
from stratrun.state import BatchInfo


class Numbers(Dataset[Tensor]):
    """Sample i is the number i. Reading an index in `forbidden` fails."""

    def __init__(self, samples: int, forbidden: Iterable[int] = ()) -> None:
        self.samples = samples
        self.forbidden = frozenset(forbidden)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        if index in self.forbidden:
            raise AssertionError(f"sample {index} was read")
        return torch.tensor(index)


class Noisy(Numbers):
    """A sample is its index and a draw from each generator of the host."""

    def __getitem__(self, index: int) -> Tensor:
        draws = [random.random(), numpy.random.random(), torch.rand(()).item()]
        return torch.tensor([index, *draws], dtype=torch.float64)


class NoisyInBatches(Noisy):
    """Noisy, with a method that reads a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[index] for index in indices]


class Stream(IterableDataset[Any]):
    """The numbers below `samples`, without a length; with `noisy`, random parts as in Noisy."""

    def __init__(self, samples: int, noisy: bool = False) -> None:
        self.samples = samples
        self.noisy = noisy

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.samples):
            yield Noisy(self.samples)[index] if self.noisy else torch.tensor(index)


def make_feed(
    spec: Any, rank: int = 0, world_size: int = 1, *, train: bool = True, seed: int = 0, **options: Any
) -> tuple[Feed, BatchInfo]:
    info = BatchInfo()
    feed = build_feed(
        spec,
        train=train,
        seed=seed,
        rank=rank,
        world_size=world_size,
        batch=info,
        move=lambda b: b,
        **options,
    )
    return feed, info


def on_ranks(spec: Any, world_size: int, **options: Any) -> list[tuple[Feed, BatchInfo]]:
    """A feed for each rank."""
    return [make_feed(spec, rank, world_size, **options) for rank in range(world_size)]


def rest_of_epoch(feed: Feed, info: BatchInfo) -> list[tuple[list[int], BatchInfo]]:
    """Samples of each batch up to the end of the epoch, and what was noted on it."""
    return [(batch.tolist(), noted(info)) for batch in feed]


def noted(info: BatchInfo) -> BatchInfo:
    return BatchInfo(info.size, info.scale, info.positions, info.total)


def in_global_order(per_rank: list[list[tuple[list[int], BatchInfo]]]) -> list[int]:
    """Samples in the order of the epoch: by turns from each rank, batch after batch.

    Repeated samples, which only keep the ranks in step, are left out.
    """
    order = []
    for batches in zip(*per_rank, strict=True):
        shares = [samples[: info.size] for samples, info in batches]
        for place in range(max(map(len, shares))):
            order += [share[place] for share in shares if place < len(share)]
    return order

"""Data sets with an index, in the order of a sampler of the user's own."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import BatchSampler

from stratrun.data.batch import batch_size_of
from stratrun.data.options import LoaderOptions
from stratrun.data.order import Share
from stratrun.data.reader import length_of, map_reader
from stratrun.data.seeding import BatchKey
from stratrun.data.source import (
    Cursor,
    Setting,
    Source,
    ended_early,
    enter_epoch,
    refuse_other_ranks,
)
from stratrun.seed import HostRng, derive_seed


class SampledSource(Source):
    """A data set as the user's sampler walks through it, on each rank by itself.

    The sampler is left alone but for `set_epoch`, and for generators of its own: equally seeded on
    every rank, so that an epoch can be repeated to find a position in it.
    """

    kind = "a sampler of your own"

    def __init__(self, dataset: Any, sampler: Any, options: LoaderOptions, setting: Setting) -> None:
        length_of(dataset, setting.name)
        self.dataset = dataset
        self._sampler = sampler
        self._options = options
        self._setting = setting
        self._seed = setting.seed
        self._keys = _SampledKeys(sampler, options, setting)
        self._reader = map_reader(dataset, options, setting, self._keys)

    @property
    def ends_alone(self) -> bool:
        return self.left(Cursor()) is None

    @property
    def ahead(self) -> bool:
        return self._options.draws_apart

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        epoch = cursor.epoch if self._setting.train else 0
        for part in (self._sampler, getattr(self._sampler, "sampler", None)):
            enter_epoch(part, self._setting.order_of(epoch))
        self._keys.aim(self._seed, epoch, cursor.batches, self.most)
        base = derive_seed(self._seed, "samples", self._setting.purpose, epoch)
        return map(self._with_share, self._reader.read(base))

    def left(self, cursor: Cursor) -> int | None:
        try:
            return max(len(self._sampler) - cursor.batches, 0)
        except (TypeError, NotImplementedError):
            return None

    def describe(self) -> str:
        own = self._sampler
        if type(own) in (BatchSampler, Singles):
            own = own.sampler
        text = f"{len(self.dataset)} samples, in the order of your {type(own).__name__}, which is left alone"
        if self._setting.world_size > 1:
            text += f": each of {self._setting.world_size} ranks reads what it says there, and they read "
            text += "the same samples unless it shares them out"
        return text

    def state(self, cursor: Cursor) -> dict[str, Any]:
        return {"seed": self._seed, "world_size": self._setting.world_size}

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        self._seed = state.get("seed", self._seed)
        refuse_other_ranks("a sampler of your own", state, cursor, self._setting)
        return ""

    def close(self) -> None:
        self._reader.close()

    def _with_share(self, batch: Any) -> tuple[Any, Share]:
        share = self._keys.shares.popleft()
        if self._options.batch_size is None and type(self._sampler) is Singles:
            size = batch_size_of(batch)
            share = share._replace(size=size, positions=None, total=size if share.total else None)
        return batch, share


class Singles:
    """A sampler whose every index is a batch of its own."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[Any]]:
        return ([index] for index in self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _SampledKeys(Iterable[BatchKey]):
    """What the sampler says from a batch on, and how much each rank gets of it."""

    def __init__(self, sampler: Any, options: LoaderOptions, setting: Setting) -> None:
        self._sampler = sampler
        self._seeded = options.seed_samples
        self._setting = setting
        self.shares: deque[Share] = deque()
        """Shares of the batches that were asked for and not yet read."""

    def aim(self, seed: int, epoch: int, skip: int, most: int | None) -> None:
        self._seed, self._epoch, self._skip, self._most = seed, epoch, skip, most

    def __iter__(self) -> Iterator[BatchKey]:
        self.shares.clear()
        rank, ranks, purpose = self._setting.rank, self._setting.world_size, self._setting.purpose
        base = derive_seed(self._seed, "samples", purpose, self._epoch) if self._seeded else None
        order = self._setting.order_of(self._epoch)
        rng = HostRng(derive_seed(self._seed, "sampler", purpose, order))
        with rng:
            batches = iter(self._sampler)
        count = 0
        numbers = itertools.count() if self._most is None else range(self._skip + self._most)
        for number in numbers:
            with rng:
                batch = next(batches, None)
            if batch is None:
                if number < self._skip:
                    raise ended_early(self._skip, number, "batches", self._setting)
                return
            indices = list(batch)
            stop = count + len(indices)
            if number >= self._skip:
                positions = range(count, stop) if ranks == 1 else None
                total = len(indices) if ranks == 1 else None
                self.shares.append(Share(len(indices), 1.0, positions, total, total or 0))
                yield BatchKey(self._epoch, base, range(count * ranks + rank, stop * ranks, ranks), indices)
            count = stop

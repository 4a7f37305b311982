"""Data sets without index: streams, of which every rank takes its rows."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, default_convert, get_worker_info

from stratrun.data.batch import batch_size_of
from stratrun.data.options import LoaderOptions
from stratrun.data.order import Share, split
from stratrun.data.reader import Only, Reader, unchanged
from stratrun.data.seeding import sample_seed
from stratrun.data.source import (
    Cursor,
    Setting,
    Source,
    ended_early,
    enter_epoch,
    from_batch,
    other_batches,
    refuse_other_ranks,
)
from stratrun.errors import DataError
from stratrun.seed import HostRng, derive_seed, seed_host

_END = object()
Taken = tuple[Any, tuple[int, int, int, int]]
"""A batch, and its first position, the step between positions, its size and its total."""


@dataclass(frozen=True, slots=True)
class Ended:
    """In place of batches: the stream has ended before the position to begin at.

    Handed on rather than raised, as torch would wrap what is raised in a worker.
    """

    samples: int


class StreamSource(Source):
    """An iterable data set, read whole by every rank, each keeping every w-th sample.

    So all ranks see where it ends, without a word between them. Its length, if it claims one, is
    not relied upon.
    """

    kind = "a stream"

    def __init__(self, dataset: Any, options: LoaderOptions, setting: Setting) -> None:
        self.dataset = dataset
        self._options = options
        self._setting = setting
        self._seed = setting.seed
        self._batches = StreamBatches(dataset, options, setting)
        self._reader = Reader(
            partial(options.make_loader, self._batches, setting, batch_size=None, collate_fn=unchanged)
        )

    @property
    def shared_out(self) -> bool:
        # The batches of several workers take turns until the stream of each has ended.
        return not self._options.sharded and self._workers == 1

    @property
    def ends_alone(self) -> bool:
        return self._options.sharded

    @property
    def ahead(self) -> bool:
        return self._options.draws_apart

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        epoch = self._setting.order_of(cursor.epoch)
        base = derive_seed(self._seed, "samples", self._setting.purpose, epoch)
        # Batches of several workers take turns, which only counting them repeats.
        skip_batches = cursor.batches if self._workers > 1 else 0
        skip = 0 if skip_batches else self._position(cursor)
        self._batches.aim(epoch, skip, base)
        batches = self._reader.read(base)
        if skip_batches:
            batches = from_batch(batches, skip_batches, 0, self._setting)
        return (self._with_share(taken, skip) for taken in batches)

    def left(self, cursor: Cursor) -> None:
        return None

    def describe(self) -> str:
        ranks = self._setting.world_size
        size = self._options.batch_size
        text = f"a stream, in batches of {'its own' if size is None else size}"
        if ranks > 1 and self._options.sharded:
            text += f", shared out over {ranks} ranks by the data set itself"
        elif ranks > 1:
            text += f" x {ranks} ranks: each reads all of it and keeps every {ranks}th sample "
            text += "(sharded=True if the data set shares out its samples itself)"
        if self._workers > 1:
            text += f", by {self._workers} workers, over which the data set shares out its samples itself "
            text += "(torch.utils.data.get_worker_info)"
        return text + "; a resumed run reads again what it skips"

    def state(self, cursor: Cursor) -> dict[str, Any]:
        setting = self._setting
        return {
            "seed": self._seed,
            "workers": self._workers,
            "global_batch": (self._options.batch_size or 1) * setting.world_size,
            "world_size": setting.world_size,
        }

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        self._seed = state.get("seed", self._seed)
        if self._options.sharded:
            refuse_other_ranks("a data set that shares out its samples itself", state, cursor, self._setting)
        now = self.state(cursor)
        then = {key: state.get(key, now[key]) for key in ("workers", "global_batch")}
        several = max(then["workers"], now["workers"]) > 1
        if cursor.batches and several and any(then[key] != now[key] for key in then):
            raise DataError(
                f"{self._setting.name}: the checkpoint was taken within an epoch of a stream read by "
                f"{then['workers']} workers in global batches of {then['global_batch']}, and now it is "
                f"{now['workers']} and {now['global_batch']}: with several workers both decide on the order; "
                "resume with the same, or train streams with num_workers=1"
            )
        return other_batches(then["global_batch"], now["global_batch"])

    def close(self) -> None:
        self._reader.close()

    @property
    def _workers(self) -> int:
        return max(self._options.num_workers, 1)

    def _position(self, cursor: Cursor) -> int:
        if self._options.sharded:
            return cursor.batches * (self._options.batch_size or 1)
        return cursor.consumed

    def _with_share(self, taken: Taken | Ended, skip: int) -> tuple[Any, Share]:
        if isinstance(taken, Ended):
            raise ended_early(skip, taken.samples, "samples", self._setting)
        batch, (first, step, size, total) = taken
        setting = self._setting
        positions = range(first, first + size * step, step)
        scale = size * setting.world_size / total if setting.train else 1.0
        share = Share(size, scale, positions, total, total)
        if self._options.sharded and setting.world_size > 1:
            share = Share(size, 1.0, None, None, size)
        if self._options.batch_size is None:
            found = batch_size_of(batch) if size else 0
            alone = found if setting.world_size == 1 else None
            share = share._replace(size=found, positions=None, total=alone)
        return batch, share


class StreamBatches(IterableDataset[Any]):
    """Batches of a stream, made where the stream is read, in the worker."""

    def __init__(self, dataset: Any, options: LoaderOptions, setting: Setting) -> None:
        self.dataset = dataset
        self._per_rank = options.batch_size or 1
        self._collate = options.collate_fn or default_collate
        if options.batch_size is None:
            self._collate = Only(options.collate_fn or default_convert)
        self._drop_last = options.drop_last and setting.train
        self._seeded = options.seed_samples
        self._private = HostRng()
        self._pad = setting.train
        alone = options.sharded or setting.world_size == 1
        self._rank, self._ranks = (0, 1) if alone else (setting.rank, setting.world_size)
        # Workers that outlive an epoch keep their copy of this object, but share this memory.
        self._aim = torch.zeros(3, dtype=torch.int64)
        if options.num_workers:
            self._aim.share_memory_()

    def aim(self, epoch: int, skip: int, base: int) -> None:
        """Say what the next iteration is to read."""
        self._aim.copy_(torch.tensor([epoch, skip, base]))

    def __iter__(self) -> Iterator[Taken | Ended]:
        epoch, skip, base = self._aim.tolist()
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        base = derive_seed(base, number) if number else base
        enter_epoch(self.dataset, epoch)
        with self._rng():
            samples = self._seeded_iter(base)
            skipped = sum(1 for _ in islice(samples, skip))
        if skipped < skip:
            yield Ended(skipped)
            return
        start = skip
        while True:
            with self._rng():
                taken = self._take(samples, start)
            if taken is None:
                return
            batch, share = taken
            positions = share.positions
            first = positions[0] if positions else start
            yield batch, (first * workers + number, self._ranks * workers, share.size or 0, share.advance)
            start += share.advance

    def _take(self, samples: Iterator[Any], start: int) -> tuple[Any, Share] | None:
        """The batch of this rank out of the next global batch; None at the end."""
        own, first, total = [], None, 0
        for place in range(self._per_rank * self._ranks):
            sample = next(samples, _END)
            if sample is _END:
                break
            total += 1
            if place % self._ranks == self._rank:
                own.append(sample)
            if place == 0:
                first = sample
        if not total or (self._drop_last and total < self._per_rank * self._ranks):
            return None
        share = split(start, total, self._per_rank, self._rank, self._ranks, self._pad)
        return None if share is None else (self._collate(own or [first]), share)

    def _seeded_iter(self, base: int) -> Iterator[Any]:
        if not self._seeded:
            yield from self.dataset
            return
        seed_host(base)
        samples = iter(self.dataset)
        position = 0
        while True:
            seed_host(sample_seed(base, position))
            sample = next(samples, _END)
            if sample is _END:
                return
            yield sample
            position += 1

    def _rng(self) -> AbstractContextManager[None]:
        apart = self._seeded and get_worker_info() is None
        return self._private if apart else nullcontext()

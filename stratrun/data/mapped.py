"""Data sets with an index, in an order of ours."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import default_collate

from stratrun.data.batch import batch_size_of
from stratrun.data.options import LoaderOptions
from stratrun.data.order import Order, Plan, Share, epoch_order, indices_at
from stratrun.data.reader import length_of, map_reader
from stratrun.data.samplers import PositionSampler
from stratrun.data.seeding import BatchKey, draws_nothing
from stratrun.data.source import Cursor, Setting, Source, other_batches, refuse_other_data
from stratrun.errors import DataError
from stratrun.seed import derive_seed


class OrderedSource(Source):
    """A data set in an order that is a function of (seed, epoch), from any position at once."""

    kind = "a data set with an index"

    def __init__(
        self,
        dataset: Any,
        options: LoaderOptions,
        setting: Setting,
        *,
        shuffle: bool,
        sampler: PositionSampler | None = None,
    ) -> None:
        self.dataset = dataset
        self._options = options
        self._setting = setting
        self._sampler = sampler
        samples = length_of(dataset, setting.name)
        # Without it, the positions of evaluation are the indices, and its result is the same.
        self._shuffle = shuffle and setting.train and not setting.same
        self._seed = setting.seed
        self._plan = Plan(
            samples=samples if sampler is None else len(sampler),
            per_rank=options.batch_size or 1,
            rank=setting.rank,
            world_size=setting.world_size,
            drop_last=options.drop_last and setting.train,
            pad=setting.train,
        )
        if setting.train and not self._plan.left(0):
            raise DataError(
                f"{setting.name}: drop_last=True leaves no batch: {self._plan.samples} samples are fewer "
                f"than the global batch of {self._arithmetic()}; lower batch_size, or set drop_last=False"
            )
        self._keys = _Keys(self._plan)
        self._reader = map_reader(dataset, options, setting, self._keys)

    @property
    def shared_out(self) -> bool:
        return True

    @property
    def ahead(self) -> bool:
        return self._options.draws_apart or draws_nothing(self.dataset)

    @property
    def uneven(self) -> bool:
        plan = self._plan
        return not plan.drop_last and plan.samples % plan.global_batch % plan.world_size != 0

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        plan, setting = self._plan, self._setting
        # Evaluation draws the same numbers every time, so that results can be compared.
        epoch = cursor.epoch if setting.train else 0
        order = self._order(epoch)
        plain = draws_nothing(self.dataset) and self._options.collate_fn in (None, default_collate)
        seeded = self._options.seed_samples and not plain
        base = derive_seed(self._seed, "samples", setting.purpose, epoch)
        self._keys.aim(order, epoch, base if seeded else None, cursor.consumed, self.most)
        batches = self._reader.read(base)
        shares = plan.shares(cursor.consumed)
        if self._options.batch_size is None:
            return map(self._of_items, batches, shares)
        return zip(batches, shares, strict=self.most is None)

    def indices(self, epoch: int, positions: Sequence[int]) -> Sequence[int] | None:
        if self._options.batch_size is None or not isinstance(positions, range):
            return None
        return indices_at(self._order(epoch), positions)

    def left(self, cursor: Cursor) -> int:
        return self._plan.left(cursor.consumed)

    def length(self, epoch: int) -> int:
        return replace(self._plan, rank=0).left(0)

    def describe(self) -> str:
        plan = self._plan
        parts = [f"{plan.samples} {'batches' if self._options.batch_size is None else 'samples'}"]
        if self._sampler is not None:
            parts.append(f"{self._sampler.describe()}, by (seed {self._seed}, epoch)")
        elif self._shuffle:
            parts.append(f"shuffled by (seed {self._seed}, epoch)")
        elif self._setting.train:
            parts.append("in the order of the data set")
        else:
            parts.append("each once, in the order of the data set")
        parts.append(f"{plan.left(0)} batches of {self._arithmetic()}")
        if rest := plan.samples % plan.global_batch:
            parts.append(f"the last {'dropped' if plan.drop_last else f'of {rest}'}")
        return ", ".join(parts)

    def state(self, cursor: Cursor) -> dict[str, Any]:
        plan = self._plan
        sampler = {} if self._sampler is None else {"sampler": self._sampler.fingerprint}
        return {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "samples": plan.samples,
            "global_batch": plan.global_batch,
            **sampler,
        }

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        # The run goes on in the order that it began with, whatever seed this process was given.
        self._seed = state.get("seed", self._seed)
        unit = "samples" if self._options.batch_size is not None else "items of the data set"
        told = other_batches(state.get("global_batch"), self._plan.global_batch, unit)
        sampler = None if self._sampler is None else self._sampler.fingerprint
        now_is = {"sampler": sampler, "samples": self._plan.samples, "shuffle": self._shuffle}
        for key, now in now_is.items():
            refuse_other_data(key, state.get(key), now, cursor, self._setting)
        return told

    def close(self) -> None:
        self._reader.close()

    def _order(self, epoch: int) -> Order:
        if self._sampler is not None:
            return self._sampler.order(self._seed, self._setting.order_of(epoch))
        return epoch_order(self._seed, epoch, self._plan.samples, self._shuffle)

    def _arithmetic(self) -> str:
        plan = self._plan
        size = plan.per_rank if self._options.batch_size is not None else 1
        if plan.world_size == 1:
            return str(size)
        return f"{size} x {plan.world_size} ranks = {plan.global_batch}"

    def _of_items(self, batch: Any, share: Share) -> tuple[Any, Share]:
        """The share of an item that is a batch: its samples are seen only now.

        Positions leave room for the samples of other items, whose number this rank does not know.
        """
        size = batch_size_of(batch) if share.size else 0
        total = size if self._plan.world_size == 1 else None
        first = share.positions[0] << 32 if share.positions else 0
        positions = None if size is None else range(first, first + size)
        return batch, share._replace(size=size, positions=positions, total=total)


class _Keys(Iterable[BatchKey]):
    """What the reader is to read: the shares of this rank from a position on."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def aim(self, order: Order, epoch: int, base: int | None, start: int, most: int | None) -> None:
        self._order, self._epoch, self._base, self._start, self._most = order, epoch, base, start, most

    def __iter__(self) -> Iterator[BatchKey]:
        order, epoch, base, start = self._order, self._epoch, self._base, self._start
        for share in islice(self._plan.shares(start), self._most):
            # A rank without a sample repeats the first of the batch.
            positions = share.positions if share.size else range(start, start + 1)
            assert isinstance(positions, range)
            yield BatchKey(epoch, base, positions, indices_at(order, positions))
            start += share.advance

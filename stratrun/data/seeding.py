"""Random numbers of data sets and samplers: tied to the sample, and kept out of the run's own."""

import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate, get_worker_info

from stratrun.data import views
from stratrun.seed import HostRng, seed_host

_OF_ONE = (Subset, views.Subset, views.RepeatDataset, views.ClassBalancedDataset)
_WORD = 2**64 - 1
_PROBE = 20


class BatchKey(NamedTuple):
    """What a worker is asked for."""

    epoch: int
    base: int | None
    """What seeds are made of. None leaves the generators alone: what the data set draws then
    depends on the workers, and without workers comes out of the run's own stream."""
    positions: Sequence[int]
    indices: Sequence[Any]


def sample_seed(base: int, position: int) -> int:
    """The seed of one position. Mixes like splitmix64: a digest would take three times as long."""
    word = (base + position * 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return (word ^ (word >> 31)) >> 1


class Samples(Dataset[Any]):
    """A data set as workers see it: asked for by `BatchKey`, it gives a batch.

    What the data set draws is seeded by the position of the sample, what `collate` draws by that
    of the first of the batch.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any]) -> None:
        self.dataset = dataset
        self._collate = collate
        self._epoch: int | None = None
        self._whole = _fetches_whole_batches(dataset)
        # Whether it was seen to draw; None before the first batch. Seeding takes longer than reading
        # many a sample, so where nothing was drawn it is done once for a batch, to see that this is
        # still so. A batch that shows otherwise is read again.
        self._draws: bool | None = None
        self._rng = HostRng()

    def __getitems__(self, key: BatchKey) -> Any:
        epoch, base, positions, indices = key
        if epoch != self._epoch:
            self._epoch = epoch
            # Here rather than in the main process, whose copy is not the one that workers read.
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
        if base is None:
            return self._collate(self._all(indices))
        if get_worker_info() is not None:
            return self._seeded(base, positions, indices)
        with self._rng:
            return self._seeded(base, positions, indices)

    def _seeded(self, base: int, positions: Sequence[int], indices: Sequence[Any]) -> Any:
        samples = self._read(base, positions, indices)
        if self._collate is not default_collate:
            seed_host(sample_seed(base, -1 - positions[0]))
        return self._collate(samples)

    def _read(self, base: int, positions: Sequence[int], indices: Sequence[Any]) -> Sequence[Any]:
        if self._draws is False:
            seed_host(_PROBE)
            samples = self._all(indices)
            if _untouched(_PROBE):
                return samples
            self._draws = True
        taken, drew = [], False
        for position, index in zip(positions, indices, strict=True):
            seed = sample_seed(base, position)
            seed_host(seed)
            taken.append(self._one(index))
            if self._draws is None:
                drew = drew or not _untouched(seed)
        if self._draws is None:
            self._draws = drew
        return taken

    def _all(self, indices: Sequence[Any]) -> Sequence[Any]:
        if self._whole:
            samples: Sequence[Any] = self.dataset.__getitems__(list(indices))
            return samples
        return [self._one(index) for index in indices]

    def _one(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"while reading {_named(self.dataset, index)}")
            raise


def draws_nothing(dataset: Any) -> bool:
    """Whether it is certain that reading a sample draws no random number."""
    if type(dataset) in _OF_ONE:
        return draws_nothing(dataset.dataset)
    if type(dataset) in (ConcatDataset, views.ConcatDataset):
        return all(map(draws_nothing, dataset.datasets))
    return type(dataset) is TensorDataset


def _fetches_whole_batches(dataset: Any) -> bool:
    # What shows samples of another has the method even when that has not.
    while type(dataset) in _OF_ONE:
        dataset = dataset.dataset
    return callable(getattr(dataset, "__getitems__", None))


def _named(dataset: Any, index: Any) -> str:
    text = f"sample {index!r} of {type(dataset).__name__}"
    inner, place = views.origin_of(dataset, index)
    return text if inner is dataset else f"{text}, which is sample {place!r} of {type(inner).__name__}"


def _untouched(seed: int) -> bool:
    """Whether nobody drew since `seed_host(seed)`."""
    seen = _draws()
    if seed == _PROBE:
        return seen == _probe_draws()
    seed_host(seed)
    return seen == _draws()


@cache
def _probe_draws() -> tuple[Any, ...]:
    seed_host(_PROBE)
    return _draws()


def _draws() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return random.random(), torch.rand(()).item(), numpy and numpy.random.random()

"""Reading batches with a `DataLoader`."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate, default_convert

from stratrun.data import worker_signals
from stratrun.data.options import LoaderOptions
from stratrun.data.seeding import BatchKey, Samples
from stratrun.data.source import Setting
from stratrun.errors import DataError


class Reader:
    """A `DataLoader` that is given up with its workers, and made again on demand."""

    def __init__(self, make: Callable[[], DataLoader[Any]]) -> None:
        self._make = make
        # Made at once, so that wrong arguments show before the run has begun.
        self._held = [make()]
        # Workers of a loader that the cycle collector finds are not told to end, and joining
        # them takes 5 s each; kept alive from here, it is let go by count of references.
        weakref.finalize(self, self._held.clear).atexit = False

    def read(self, seed: int) -> Iterator[Any]:
        """A new pass over the data. `seed` is what workers seed their generators with."""
        if not self._held:
            self._held.append(self._make())
        (loader,) = self._held
        loader.generator.manual_seed(seed)
        return iter(loader)

    def close(self) -> None:
        with worker_signals.stay(False):
            self._held.clear()


def map_reader(dataset: Any, options: LoaderOptions, setting: Setting, keys: Iterable[BatchKey]) -> Reader:
    """A reader of a data set with an index, which iterates `keys` anew for every pass."""
    collate = options.collate_fn or default_collate
    if options.batch_size is None:
        collate = Only(options.collate_fn or default_convert)
    plain = type(dataset) is TensorDataset and collate is default_collate
    samples = Rows(dataset, collate) if plain else Samples(dataset, collate)
    # Batches are made where samples are read, with the same care for random numbers.
    return Reader(partial(options.make_loader, samples, setting, batch_sampler=keys, collate_fn=unchanged))


class Rows(Samples):
    """Tensors of equal length, read a batch at a time: what collating their rows would give."""

    def __getitems__(self, key: BatchKey) -> Any:
        rows = torch.tensor(key.indices)
        return [tensor[rows] for tensor in self.dataset.tensors]


class Only:
    """Collate function for data sets whose items are batches already."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self._convert = convert

    def __call__(self, items: Sequence[Any]) -> Any:
        (item,) = items
        return self._convert(item)


def unchanged(batch: Any) -> Any:
    return batch


def length_of(dataset: Any, name: str) -> int:
    """Number of samples of a data set with an index.

    Raises:
        DataError: it has no index, no length, or no samples.
    """
    kind = type(dataset).__name__
    if not callable(getattr(dataset, "__getitem__", None)):
        raise DataError(
            f"{name}: {kind} is no data set: it has no __getitem__, and is no IterableDataset; "
            "define __getitem__(index) and __len__(), or derive it from torch.utils.data.IterableDataset"
        )
    try:
        samples = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name}: {kind} has no length; define __len__(), or derive it from "
            "torch.utils.data.IterableDataset if the length is not known"
        ) from error
    if samples == 0:
        raise DataError(
            f"{name}: {kind} is empty: len() is 0; check the path, split or filter it was made with"
        )
    return samples

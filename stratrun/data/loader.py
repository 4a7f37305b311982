"""From what the user gives as data to a `Feed`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from stratrun.data.check import is_dataset, refuse_mistakes, refuse_no_dataset, sampler_key
from stratrun.data.ending import DataEnd, Sums
from stratrun.data.feed import Beside, Feed
from stratrun.data.in_step import InStep
from stratrun.data.mapped import OrderedSource
from stratrun.data.options import LoaderOptions
from stratrun.data.ready import ReadySource, StatefulSource
from stratrun.data.sampled import SampledSource, Singles
from stratrun.data.source import Setting, Source
from stratrun.data.stream import StreamSource
from stratrun.errors import ConfigError
from stratrun.registry import DATASETS, SAMPLERS
from stratrun.state import BatchInfo


def build_feed(
    spec: Any,
    *,
    train: bool,
    seed: int,
    rank: int,
    world_size: int,
    batch: BatchInfo,
    move: Callable[[Any], Any],
    pin_memory: bool = False,
    in_step: InStep | None = None,
    ranks: Sums | None = None,
    beside: Beside | None = None,
    name: str = "dataloader",
) -> Feed:
    """Make what loops iterate out of what the user gave.

    Args:
        spec: A dict (`dataset`, `batch_size` or `global_batch_size`, any argument of `DataLoader`,
            `seed_samples`, `sharded`), a `DataLoader` or other loader, a data set, an iterable of
            ready batches or a function that returns one. A `Feed` is returned as it is.
        train: Training order and equal numbers of batches on all ranks; else each sample once.
        batch: Where to note what batch was handed out.
        move: Brings a batch to the device.
        pin_memory: Whether pinned memory is of use here.
        in_step: What keeps ranks at as many forward passes in evaluation, where that is needed.
        ranks: Exchanges of all ranks, for training data of which each has its own.
        beside: What brings batches to the device beside its work, where there is such a thing.
        name: What the user calls it, for messages.

    Raises:
        ConfigError: the spec, or a value in it, is none of these.
        DataError: the data cannot serve.
    """
    if isinstance(spec, Feed):
        return spec
    setting = Setting(name, train, seed, rank, world_size, pin_memory)
    end = DataEnd(ranks, name) if ranks is not None and ranks.world_size > 1 else None
    return Feed(_source(spec, setting), setting, batch, move, in_step, end=end, beside=beside)


def _source(spec: Any, setting: Setting) -> Source:
    refuse_mistakes(spec, setting)
    if isinstance(spec, Mapping):
        return _from_dict(spec, setting)
    if _keeps_position(spec) and not is_dataset(spec):
        return StatefulSource(spec, setting)
    if isinstance(spec, DataLoader):
        return _from_loader(spec, setting)
    if is_dataset(spec):
        return _from_dataset(spec, LoaderOptions(), setting, shuffle=setting.train)
    return ReadySource(spec, setting)


def _from_dict(spec: Mapping[str, Any], setting: Setting) -> Source:
    options = LoaderOptions.from_dict(spec, setting)
    refuse_no_dataset(spec, setting)
    dataset = DATASETS.build(spec["dataset"], where=f"{setting.name}.dataset")
    sampler = _own_sampler(spec, dataset, options, setting)
    if sampler is not None:
        return SampledSource(dataset, sampler, options, setting)
    shuffle = spec.get("shuffle")
    return _from_dataset(
        dataset, options, setting, shuffle=setting.train if shuffle is None else bool(shuffle)
    )


def _own_sampler(spec: Mapping[str, Any], dataset: Any, options: LoaderOptions, setting: Setting) -> Any:
    """The user's sampler as a sampler of batches; None where there is none."""
    key = sampler_key(spec, dataset, setting)
    if key is None:
        return None
    offer = {
        "dataset": dataset,
        "data_source": dataset,
        "rank": setting.rank,
        "num_replicas": setting.world_size,
    }
    built = SAMPLERS.build(spec[key], where=f"{setting.name}.{key}", offer=offer)
    if not hasattr(built, "__iter__"):
        raise ConfigError(f"{setting.name}: {key}={built!r} cannot be iterated")
    if key == "batch_sampler":
        return built
    if options.batch_size is None:
        return Singles(built)
    return BatchSampler(built, options.batch_size, options.drop_last)


def _from_loader(loader: DataLoader[Any], setting: Setting) -> Source:
    if type(loader).__iter__ is not DataLoader.__iter__:
        return ReadySource(loader, setting)
    options = LoaderOptions.from_loader(loader)
    if isinstance(loader.dataset, IterableDataset):
        return StreamSource(loader.dataset, options, setting)
    if _has_default_order(loader):
        shuffle = isinstance(loader.sampler, RandomSampler)
        return OrderedSource(loader.dataset, options, setting, shuffle=shuffle)
    if loader.batch_sampler is None:
        return SampledSource(loader.dataset, Singles(loader.sampler), options, setting)
    return SampledSource(loader.dataset, loader.batch_sampler, options, setting)


def _has_default_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one that `DataLoader` makes by itself."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return False
        # With a batch sampler of the user's, `loader.sampler` is a default that is not used.
        sampler = loader.batch_sampler.sampler
    if type(sampler) not in (SequentialSampler, RandomSampler) or sampler.data_source is not loader.dataset:
        return False
    whole = type(sampler) is SequentialSampler or sampler.num_samples == len(loader.dataset)
    return whole and not getattr(sampler, "replacement", False)


def _from_dataset(dataset: Any, options: LoaderOptions, setting: Setting, *, shuffle: bool) -> Source:
    if isinstance(dataset, IterableDataset):
        return StreamSource(dataset, options, setting)
    return OrderedSource(dataset, options, setting, shuffle=shuffle)


def _keeps_position(spec: Any) -> bool:
    return all(callable(getattr(spec, name, None)) for name in ("state_dict", "load_state_dict"))

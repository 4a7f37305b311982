"""From what the user gives as data to a `Feed`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
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
from stratrun.data.limited import Limit, LimitedSource
from stratrun.data.mapped import OrderedSource
from stratrun.data.options import LoaderOptions
from stratrun.data.part import Part
from stratrun.data.ready import ReadySource, StatefulSource, keeps_position
from stratrun.data.sampled import SampledSource, Singles
from stratrun.data.samplers import PositionSampler
from stratrun.data.several import SeveralSource
from stratrun.data.several_spec import SeveralLoaders, is_several
from stratrun.data.source import Setting, Source
from stratrun.data.stream import StreamSource
from stratrun.data.views import check_dataset
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
    limit: Limit | None = None,
) -> Feed:
    """Make what loops iterate out of what the user gave.

    Args:
        spec: A dict (`dataset`, `batch_size` or `global_batch_size`, any argument of `DataLoader`,
            `seed_samples`, `sharded`), a `DataLoader` or other loader, a data set, an iterable of
            ready batches or a function that returns one; or several of these (`SeveralLoaders`). A `Feed`
            is returned as it is.
        train: Training order and equal numbers of batches on all ranks; else each sample once.
        batch: Where to note what batch was handed out.
        move: Brings a batch to the device.
        pin_memory: Whether pinned memory is of use here.
        in_step: What keeps ranks at as many forward passes in evaluation, where that is needed.
        ranks: Exchanges of all ranks, for training data of which each has its own.
        beside: What brings batches to the device beside its work, where there is such a thing.
        name: What the user calls it, for messages.
        limit: How much of it is read, if not all.

    Raises:
        ConfigError: the spec, or a value in it, is none of these.
        DataError: the data cannot serve.
    """
    if isinstance(spec, Feed):
        return spec
    same = limit is not None and limit.same
    setting = Setting(name, train, seed, rank, world_size, pin_memory, same)
    end = DataEnd(ranks, name) if ranks is not None and ranks.world_size > 1 else None
    source = _several(spec, setting, ranks) if is_several(spec) else _source(spec, setting)
    if limit is not None:
        source = LimitedSource(source, limit.batches, setting)
    return Feed(source, setting, batch, move, in_step, end=end, beside=beside)


def _several(spec: Mapping[str, Any], setting: Setting, ranks: Sums | None) -> Source:
    several = SeveralLoaders.of(spec, setting)
    parts = []
    for key in several.loaders:
        own = replace(setting, name=f"{setting.name}.loaders.{key}")
        end = DataEnd(ranks, own.name) if ranks is not None and ranks.world_size > 1 else None
        parts.append(Part(key, _source(several.spec_of(key), own), own, end))
    return SeveralSource(parts, several, setting)


def samples_of_batch(spec: Any, ranks: int, name: str = "train_dataloader") -> int | None:
    """Samples of a training batch on one of so many ranks; None for batches that come ready.

    Raises:
        ConfigError: `global_batch_size` cannot be shared equally by them.
    """
    if isinstance(spec, Mapping):
        if "dataset" not in spec or spec.get("batch_sampler") is not None:
            return None
        return LoaderOptions.size_of(spec, Setting(name, True, 0, 0, ranks, False))
    if isinstance(spec, DataLoader):
        size: int | None = spec.batch_size
        return size
    return LoaderOptions().batch_size if is_dataset(spec) else None


def _source(spec: Any, setting: Setting) -> Source:
    refuse_mistakes(spec, setting)
    if isinstance(spec, Mapping):
        return _from_dict(spec, setting)
    # Its position is one in all that it has, and there are to be the same batches again and again.
    if keeps_position(spec) and not is_dataset(spec) and not setting.same:
        return StatefulSource(spec, setting)
    if isinstance(spec, DataLoader):
        return _from_loader(spec, setting)
    if is_dataset(spec):
        return _from_dataset(spec, LoaderOptions(), setting, shuffle=setting.train)
    return ReadySource(spec, setting)


def _from_dict(spec: Mapping[str, Any], setting: Setting) -> Source:
    options = LoaderOptions.from_dict(spec, setting)
    refuse_no_dataset(spec, setting)
    check_dataset(spec["dataset"], f"{setting.name}.dataset")
    dataset = DATASETS.build(spec["dataset"], where=f"{setting.name}.dataset")
    sampler = _own_sampler(spec, dataset, options, setting)
    if isinstance(sampler, PositionSampler):
        return OrderedSource(dataset, options, setting, shuffle=False, sampler=sampler)
    if sampler is not None:
        return SampledSource(dataset, sampler, options, setting)
    shuffle = spec.get("shuffle")
    return _from_dataset(
        dataset, options, setting, shuffle=setting.train if shuffle is None else bool(shuffle)
    )


def _own_sampler(spec: Mapping[str, Any], dataset: Any, options: LoaderOptions, setting: Setting) -> Any:
    """The user's sampler, if it is none by position as a sampler of batches; None where there is none."""
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
    if isinstance(built, PositionSampler):
        return _by_position(built, key, setting)
    if key == "batch_sampler":
        return built
    if options.batch_size is None:
        return Singles(built)
    return BatchSampler(built, options.batch_size, options.drop_last)


def _by_position(sampler: PositionSampler, key: str, setting: Setting) -> PositionSampler:
    kind = type(sampler).__name__
    if key != "sampler":
        raise ConfigError(f"{setting.name}: {kind} says nothing of batches; give it as sampler=")
    if not setting.train:
        raise ConfigError(
            f"{setting.name}: {kind} is for training, where samples may come several times or not at all, "
            "and evaluation reads each once; leave sampler out"
        )
    return sampler


def _from_loader(loader: DataLoader[Any], setting: Setting) -> Source:
    if type(loader).__iter__ is not DataLoader.__iter__:
        return ReadySource(loader, setting)
    options = LoaderOptions.from_loader(loader)
    if isinstance(loader.dataset, IterableDataset):
        return StreamSource(loader.dataset, options, setting)
    own = _sampler_of(loader)
    if isinstance(own, PositionSampler):
        sampler = _by_position(own, "sampler", setting)
        return OrderedSource(loader.dataset, options, setting, shuffle=False, sampler=sampler)
    if _has_default_order(loader):
        shuffle = isinstance(loader.sampler, RandomSampler)
        return OrderedSource(loader.dataset, options, setting, shuffle=shuffle)
    if loader.batch_sampler is None:
        return SampledSource(loader.dataset, Singles(loader.sampler), options, setting)
    return SampledSource(loader.dataset, loader.batch_sampler, options, setting)


def _has_default_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one that `DataLoader` makes by itself."""
    sampler = _sampler_of(loader)
    if type(sampler) not in (SequentialSampler, RandomSampler) or sampler.data_source is not loader.dataset:
        return False
    whole = type(sampler) is SequentialSampler or sampler.num_samples == len(loader.dataset)
    return whole and not getattr(sampler, "replacement", False)


def _sampler_of(loader: DataLoader[Any]) -> Any:
    """What decides on the order; None where that is a batch sampler of the user's."""
    if loader.batch_sampler is None:
        return loader.sampler
    # With a batch sampler that was given, `loader.sampler` is a default that is not used.
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None


def _from_dataset(dataset: Any, options: LoaderOptions, setting: Setting, *, shuffle: bool) -> Source:
    if isinstance(dataset, IterableDataset):
        return StreamSource(dataset, options, setting)
    return OrderedSource(dataset, options, setting, shuffle=shuffle)

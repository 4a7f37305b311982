"""From what the user gives as data to a `Feed`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from stratrun.data.feed import Feed
from stratrun.data.mapped import OrderedSource
from stratrun.data.options import LoaderOptions
from stratrun.data.ready import ReadySource, StatefulSource
from stratrun.data.sampled import SampledSource, Singles
from stratrun.data.source import Setting, Source
from stratrun.data.stream import StreamSource
from stratrun.errors import ConfigError
from stratrun.registry import DATASETS, SAMPLERS
from stratrun.registry.arguments import at
from stratrun.state import BatchInfo

_FORMS = (
    "give a dict with 'dataset' and 'batch_size', a DataLoader, a data set, or an iterable of ready batches"
)


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
        name: What the user calls it, for messages.

    Raises:
        ConfigError: the spec, or a value in it, is none of these.
        DataError: the data cannot serve.
    """
    if isinstance(spec, Feed):
        return spec
    setting = Setting(name, train, seed, rank, world_size, pin_memory)
    return Feed(_source(spec, setting), setting, batch, move)


def _source(spec: Any, setting: Setting) -> Source:
    _refuse_mistakes(spec, setting)
    if isinstance(spec, Mapping):
        return _from_dict(spec, setting)
    if _keeps_position(spec) and not _is_dataset(spec):
        return StatefulSource(spec, setting)
    if isinstance(spec, DataLoader):
        return _from_loader(spec, setting)
    if _is_dataset(spec):
        return _from_dataset(spec, LoaderOptions(), setting, shuffle=setting.train)
    if hasattr(spec, "__iter__") or callable(spec):
        return ReadySource(spec, setting)
    raise ConfigError(f"{setting.name}={spec!r} is not something to read batches from; {_FORMS}")


def _from_dict(spec: Mapping[str, Any], setting: Setting) -> Source:
    options = LoaderOptions.from_dict(spec, setting)
    places: Mapping[str, str] = getattr(spec, "places", {})
    if spec.get("dataset") is None:
        raise ConfigError(
            f"{setting.name} has no 'dataset' (it has {', '.join(map(repr, spec)) or 'nothing'}); add one, "
            f"as an object or a dict with 'type'{at(places)}"
        )
    dataset = DATASETS.build(spec["dataset"], where=f"{setting.name}.dataset")
    if isinstance(dataset, DataLoader):
        raise ConfigError(
            f"{setting.name}: 'dataset' is a DataLoader; give it as {setting.name} itself{at(places)}"
        )
    sampler = _own_sampler(spec, dataset, options, setting)
    if sampler is not None:
        return SampledSource(dataset, sampler, options, setting)
    shuffle = spec.get("shuffle")
    return _from_dataset(
        dataset, options, setting, shuffle=setting.train if shuffle is None else bool(shuffle)
    )


def _own_sampler(spec: Mapping[str, Any], dataset: Any, options: LoaderOptions, setting: Setting) -> Any:
    """The user's sampler as a sampler of batches; None where there is none."""
    places: Mapping[str, str] = getattr(spec, "places", {})
    given = [key for key in ("sampler", "batch_sampler") if spec.get(key) is not None]
    if not given:
        return None
    key = given[0]
    excluded = (
        ("shuffle",) if key == "sampler" else ("shuffle", "batch_size", "global_batch_size", "drop_last")
    )
    clash = [*given[1:], *(other for other in excluded if spec.get(other))]
    if clash:
        raise ConfigError(
            f"{setting.name}: {key}= decides what {clash[0]}={spec[clash[0]]!r} decides too; "
            f"leave one of them out{at(places, clash[0])}"
        )
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{setting.name}: {type(dataset).__name__} is an IterableDataset, which decides on its order "
            f"itself; leave {key} out{at(places, key)}"
        )
    offer = {
        "dataset": dataset,
        "data_source": dataset,
        "rank": setting.rank,
        "num_replicas": setting.world_size,
    }
    built = SAMPLERS.build(spec[key], where=f"{setting.name}.{key}", offer=offer)
    if not hasattr(built, "__iter__"):
        raise ConfigError(f"{setting.name}: {key}={built!r} cannot be iterated{at(places, key)}")
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
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler: Any = loader.sampler
    if type(sampler) not in (SequentialSampler, RandomSampler) or sampler.data_source is not loader.dataset:
        return False
    whole = type(sampler) is SequentialSampler or sampler.num_samples == len(loader.dataset)
    return whole and not getattr(sampler, "replacement", False)


def _from_dataset(dataset: Any, options: LoaderOptions, setting: Setting, *, shuffle: bool) -> Source:
    if isinstance(dataset, IterableDataset):
        return StreamSource(dataset, options, setting)
    return OrderedSource(dataset, options, setting, shuffle=shuffle)


def _is_dataset(spec: Any) -> bool:
    if isinstance(spec, Dataset):
        return True
    return hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, list | tuple)


def _keeps_position(spec: Any) -> bool:
    return all(callable(getattr(spec, name, None)) for name in ("state_dict", "load_state_dict"))


def _refuse_mistakes(spec: Any, setting: Setting) -> None:
    """Things that could be iterated, called or indexed, and are surely not meant."""
    what = None
    if isinstance(spec, nn.Module):
        what = f"{type(spec).__name__} is a model"
    elif isinstance(spec, str | bytes):
        what = f"{spec!r} is a string"
    elif isinstance(spec, type):
        what = f"{spec.__name__} is a class, not an object of it"
    elif isinstance(spec, Tensor):
        what = "a tensor says nothing about batches (TensorDataset makes a data set of tensors)"
    elif isinstance(spec, tuple) and spec and all(isinstance(part, Tensor) for part in spec):
        what = (
            "a tuple of tensors could be a data set or one batch (write TensorDataset(*tensors), or [batch])"
        )
    if what is not None:
        raise ConfigError(f"{setting.name}: {what}; {_FORMS}")

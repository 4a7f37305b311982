"""What can be told of a data spec before anything is built or read."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from stratrun.data.feed import Feed
from stratrun.data.options import check_options
from stratrun.data.reader import length_of
from stratrun.data.several_spec import SeveralLoaders, is_several
from stratrun.data.source import Setting
from stratrun.data.views import check_dataset
from stratrun.errors import ConfigError, DataError, UnknownNameError
from stratrun.problems import part
from stratrun.registry import DATASETS, SAMPLERS
from stratrun.registry.arguments import at

SAMPLER_OFFER = ("dataset", "data_source", "rank", "num_replicas")
"""What a sampler is given if it asks for it."""
_FORMS = (
    "give a dict with 'dataset' and 'batch_size', a DataLoader, a data set, or an iterable of ready batches"
)


def check_data(spec: Any, name: str, *, train: bool) -> None:
    """Refuse what `build_feed` could make no feed of, building nothing.

    Raises:
        ConfigError: the spec, or a value in it, will not do.
        DataError: a ready data set has no length, or no samples.
    """
    if isinstance(spec, Feed):
        return
    setting = Setting(name, train, seed=0, rank=0, world_size=1, pin_memory=False)
    refuse_mistakes(spec, setting)
    if is_several(spec):
        for key, one in SeveralLoaders.of(spec, setting).loaders.items():
            with part():
                check_data(one, f"{name}.loaders.{key}", train=train)
    elif isinstance(spec, Mapping):
        _check_dict(spec, setting)
    elif isinstance(spec, list | tuple) and not spec:
        raise DataError(f"{name} is an empty {type(spec).__name__}; give at least one batch")
    elif is_dataset(spec) and not isinstance(spec, IterableDataset):
        length_of(spec, name)


def refuse_mistakes(spec: Any, setting: Setting) -> None:
    """Things that cannot be read, and those that could be iterated, called or indexed, and are not meant."""
    if isinstance(spec, Mapping):
        return
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
    if not is_dataset(spec) and not hasattr(spec, "__iter__") and not callable(spec):
        raise ConfigError(f"{setting.name}={spec!r} is not something to read batches from; {_FORMS}")


def refuse_no_dataset(spec: Mapping[str, Any], setting: Setting) -> None:
    places: Mapping[str, str] = getattr(spec, "places", {})
    dataset = spec.get("dataset")
    if dataset is None:
        raise ConfigError(
            f"{setting.name} has no 'dataset' (it has {', '.join(map(repr, spec)) or 'nothing'}); add one, "
            f"as an object or a dict with 'type'{at(places)}"
        )
    if isinstance(dataset, DataLoader):
        raise ConfigError(
            f"{setting.name}: 'dataset' is a DataLoader; give it as {setting.name} itself{at(places)}"
        )


def sampler_key(spec: Mapping[str, Any], dataset: Any, setting: Setting) -> str | None:
    """`sampler` or `batch_sampler`, whichever the user gave; None where the order is ours.

    Raises:
        ConfigError: something else in the dict, or the data set, decides on the order too.
    """
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
    return key


def is_dataset(spec: Any) -> bool:
    if isinstance(spec, Dataset):
        return True
    return hasattr(spec, "__getitem__") and hasattr(spec, "__len__") and not isinstance(spec, list | tuple)


def has_no_length(spec: Any) -> bool:
    """Whether it is certain, before anything is built, that nobody knows how many batches a loader has."""
    if isinstance(spec, Feed):
        return not spec.sized
    if is_several(spec):
        loaders = spec.get("loaders")
        return isinstance(loaders, Mapping) and any(map(has_no_length, loaders.values()))
    if isinstance(spec, Mapping):
        return _is_stream(spec.get("dataset"))
    if isinstance(spec, DataLoader) or is_dataset(spec):
        return _is_stream(getattr(spec, "dataset", spec)) or _is_stream(spec)
    return not hasattr(spec, "__len__")


def _check_dict(spec: Mapping[str, Any], setting: Setting) -> None:
    # A misspelt 'dataset' is told as such, rather than as lacking.
    check_options(spec, setting)
    refuse_no_dataset(spec, setting)
    dataset = spec["dataset"]
    with part():
        if isinstance(dataset, str | type | Mapping):
            check_dataset(dataset, f"{setting.name}.dataset")
        elif not isinstance(dataset, IterableDataset):
            length_of(dataset, setting.name)
    key = sampler_key(spec, dataset, setting)
    if key is not None and isinstance(spec[key], str | type | Mapping):
        SAMPLERS.check(spec[key], where=f"{setting.name}.{key}", offer=SAMPLER_OFFER)


def _is_stream(dataset: Any) -> bool:
    if isinstance(dataset, IterableDataset):
        return True
    kind = dataset.get("type") if isinstance(dataset, Mapping) else dataset
    if isinstance(kind, str) and "." not in kind:
        try:
            kind = DATASETS.get(kind)
        except UnknownNameError:
            return False
    return isinstance(kind, type) and issubclass(kind, IterableDataset)

"""The classes of samples, told without reading the samples."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from stratrun.errors import ConfigError, DataError, nearest

NAMES = ("targets", "labels")
"""Attributes of a data set that are looked for."""

Labels = str | Sequence[Any] | Tensor | Callable[[Any], Sequence[Any]]
"""A label for each sample, a function that returns them for the data set, or what the data set calls them."""


def classes_of(dataset: Any, labels: Labels | None, who: str) -> list[tuple[Hashable, ...]]:
    """The classes of each sample, mostly one.

    Args:
        labels: What the user says of them. A sample of several classes has a list of them.
        who: Asks for them, for messages.

    Raises:
        ConfigError: they cannot be told.
        DataError: they are not as many as the samples.
    """
    if labels is None or isinstance(labels, str):
        found = _of(dataset, labels, who)
    elif not isinstance(labels, Tensor) and callable(labels):
        found = _plain(labels(dataset), who)
    else:
        found = _plain(labels, who)
    if len(found) != len(dataset):
        raise DataError(
            f"{who}: there are {len(found)} labels for the {len(dataset)} samples of "
            f"{type(dataset).__name__}; give one for each"
        )
    return [tuple(dict.fromkeys(one)) if isinstance(one, list | tuple | set) else (one,) for one in found]


def counts_of(classes: Iterable[tuple[Hashable, ...]]) -> Counter[Hashable]:
    """In how many samples each class is."""
    return Counter(one for several in classes for one in several)


def attributes(dataset: Any) -> list[str]:
    """What an object calls what it holds, for messages."""
    return [name for name in getattr(dataset, "__dict__", {}) if not name.startswith("_")]


def _of(dataset: Any, name: str | None, who: str) -> list[Any]:
    known = [name] if name is not None else list(NAMES)
    given = next((key for key in known if hasattr(dataset, key)), None)
    if given is not None:
        found = getattr(dataset, given)
        return [found(index) for index in range(len(dataset))] if callable(found) else _plain(found, who)
    if isinstance(dataset, data.ConcatDataset):
        return [label for part in dataset.datasets for label in _of(part, name, who)]
    if callable(at := getattr(dataset, "index_of", None)):
        inner = _of(dataset.dataset, name, who)
        return [inner[at(position)] for position in range(len(dataset))]
    if isinstance(dataset, data.Subset):
        inner = _of(dataset.dataset, name, who)
        return [inner[index] for index in dataset.indices]
    if name is None and type(dataset) is data.TensorDataset and len(dataset.tensors) > 1:
        last = dataset.tensors[-1]
        if last.dim() == 1 and last.dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
            found = last.tolist()
            return list(found)
    kind = type(dataset).__name__
    if name is not None:
        raise ConfigError(f"{who}: {kind} has no attribute {name!r}; {nearest(name, attributes(dataset))}")
    raise ConfigError(
        f"{who}: {kind} has no attribute {' or '.join(map(repr, NAMES))}, and its samples are not read to "
        "learn their classes; give labels=, one for each sample, or the name of an attribute or method(index)"
    )


def _plain(labels: Any, who: str) -> list[Any]:
    if hasattr(labels, "tolist"):
        if getattr(labels, "ndim", 1) != 1:
            raise ConfigError(
                f"{who}: labels of shape {tuple(labels.shape)} do not say which classes a sample has; give "
                "one number for each sample, or a list of the classes of each"
            )
        labels = labels.tolist()
    return list(labels)

"""What can be told of a batch without knowing its model."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def batch_size_of(batch: Any) -> int | None:
    """Number of samples: length of the first tensor with a dimension, else of the first list.

    None when the batch shows neither.
    """
    if type(batch) in (tuple, list) and batch and type(first := batch[0]) is Tensor and first.dim():
        return first.size(0)  # as nearly all are
    tensors = _first(batch, _rows)
    return tensors if tensors is not None else _first(batch, _items)


def _first(batch: Any, measure: Any) -> int | None:
    size = measure(batch)
    if size is not None:
        return int(size)
    for child in _children(batch):
        size = _first(child, measure)
        if size is not None:
            return int(size)
    return None


def _rows(value: Any) -> int | None:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else None


def _items(value: Any) -> int | None:
    """Length of a list of leaves. A list of containers is a structure, not samples."""
    if isinstance(value, list) and value and not isinstance(value[0], list | tuple | Mapping):
        return len(value)
    return None


def _children(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    return ()

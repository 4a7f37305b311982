"""Bring a nested batch to a device."""

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

# Seen in nearly every batch, and without anything to move.
_PLAIN = (str, int, float, bool, bytes, type(None))
_FLAT = (tuple, list, dict)


def move_batch(
    batch: Any, device: torch.device, *, dtype: torch.dtype | None = None, non_blocking: bool = False
) -> Any:
    """Copy every tensor of a nested batch to `device`; leave what is no tensor as it is.

    Goes into dicts, lists, tuples, named tuples and data classes, which are made anew. Other objects
    with a method `to` (BatchEncoding, PackedSequence, graphs) are moved by it.

    Args:
        dtype: What floating point tensors are cast to. Objects with a method `to` are not cast.
    """
    kind = type(batch)
    if dtype is None and kind in _FLAT and device.type == "cpu":
        for value in batch.values() if kind is dict else batch:
            if type(value) is not Tensor or not value.is_cpu:
                break
        else:  # nothing to move, and a tuple is nobody's to change
            return batch if kind is tuple else batch.copy()
    return _moved(batch, device, dtype, non_blocking)


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None, non_blocking: bool) -> Any:
    kind = type(value)
    if kind is Tensor or isinstance(value, Tensor):
        if dtype is not None and value.is_floating_point():
            return value.to(device, dtype, non_blocking)
        return value.to(device, non_blocking=non_blocking) if non_blocking else value.to(device)
    if kind is dict:
        return {key: _moved(item, device, dtype, non_blocking) for key, item in value.items()}
    if kind is list:
        return [_moved(item, device, dtype, non_blocking) for item in value]
    if kind is tuple:
        return tuple([_moved(item, device, dtype, non_blocking) for item in value])
    if kind in _PLAIN:
        return value
    return _moved_object(value, device, dtype, non_blocking)


def _moved_object(value: Any, device: torch.device, dtype: torch.dtype | None, non_blocking: bool) -> Any:
    if callable(getattr(value, "to", None)) and not isinstance(value, type):
        return _by_its_own_method(value, device, non_blocking)
    if isinstance(value, tuple):
        items = [_moved(item, device, dtype, non_blocking) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, list):
        moved = copy.copy(value)
        moved[:] = [_moved(item, device, dtype, non_blocking) for item in value]
        return moved
    if isinstance(value, Mapping):
        named = {key: _moved(item, device, dtype, non_blocking) for key, item in value.items()}
        return _like(value, named) if isinstance(value, MutableMapping) else named
    if is_dataclass(value) and not isinstance(value, type):
        record: Any = copy.copy(value)
        for field in fields(value):
            item = _moved(getattr(value, field.name), device, dtype, non_blocking)
            # Frozen ones refuse plain assignment, and the copy is ours.
            object.__setattr__(record, field.name, item)
        return record
    return value


def _like(original: MutableMapping[Any, Any], items: dict[Any, Any]) -> MutableMapping[Any, Any]:
    """A copy, which keeps what a subclass carries beside its items."""
    moved = copy.copy(original)
    for key, item in items.items():
        moved[key] = item
    return moved


def _by_its_own_method(value: Any, device: torch.device, non_blocking: bool) -> Any:
    if not non_blocking:
        return value.to(device)
    try:
        return value.to(device, non_blocking=True)
    except TypeError:
        return value.to(device)

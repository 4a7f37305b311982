"""Batches in memory of their own, which a captured step reads each time."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from stratrun.errors import ConfigError

_PLAIN = (str, int, float, bool, bytes, type(None))


def kind_of(batch: Any) -> Hashable:
    """All of a batch but the numbers in its tensors: of two alike one can be put in the other's memory.

    Raises:
        ConfigError: there is something in it that cannot be looked into.
    """
    kind = type(batch)
    if isinstance(batch, Tensor):
        return kind, tuple(batch.shape), batch.dtype, tuple(batch.stride())
    if kind is dict:
        return kind, tuple([(key, kind_of(value)) for key, value in batch.items()])
    if isinstance(batch, (list, tuple)):
        return kind, tuple([kind_of(value) for value in batch])
    if kind in _PLAIN:
        return kind, batch
    raise ConfigError(
        f"compile: graphs=True keeps batches in memory of their own, and a {kind.__name__} in the batch has "
        "what cannot be copied there; give tensors, numbers and strings in dicts, lists and tuples "
        "(collate_fn=)"
    )


def tensors_of(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return []
    return [tensor for value in batch for tensor in tensors_of(value)]


def cloned(value: Any) -> Any:
    """The same with tensors of its own, whatever is written to the others later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [cloned(item) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    return value

"""A batch cut by samples, and what steps on its pieces return put together again."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Neighbouring samples of a batch."""

    batch: Any
    size: int
    share: float
    """Their part of the samples of the batch."""


def pieces_of(batch: Any, size: int, parts: int) -> list[Piece]:
    """A batch of `size` samples in `parts`, of as many samples each, or one more."""
    if parts == 1:
        return [Piece(batch, size, 1.0)]
    each, more = divmod(size, parts)
    cut, begin = [], 0
    for number in range(parts):
        length = each + (number < more)
        rows = slice(begin, begin + length)
        piece = _mapped(batch, size, itemgetter(rows))
        cut.append(Piece(piece, length, length / size))
        begin += length
    return cut


def resized(batch: Any, size: int, wanted: int) -> Any:
    """A batch of `wanted` samples: the first of those of a batch of `size`, or all of them over again."""
    if wanted <= size:
        return _mapped(batch, size, lambda value: value[:wanted])
    index = [number % size for number in range(wanted)]

    def take(value: Any) -> Any:
        return value[index] if isinstance(value, Tensor) else [value[number] for number in index]

    return _mapped(batch, size, take)


def joined(outputs: Sequence[dict[str, Any]], pieces: Sequence[Piece]) -> dict[str, Any]:
    """What a step on all pieces at once would have returned, as far as that can be told.

    Single numbers are averaged as the losses are, by weight or by samples, and weights added up. Tensors of a
    row for each sample come one after another. Of all else it is that of the last piece.
    """
    if len(outputs) == 1:
        return outputs[0]
    weights: list[Any] = [one.get("weight") for one in outputs]
    shares: list[Any] = [piece.share for piece in pieces]
    if weights[0] is not None:
        total: Any = sum(weights)
        shares = _shares(weights, total, shares)
    made = {key: _joined([one.get(key) for one in outputs], shares, pieces) for key in outputs[-1]}
    return made if weights[0] is None else {**made, "weight": total}


def _shares(weights: list[Any], total: Any, of_samples: list[float]) -> list[Any]:
    """Parts of the weight; of the samples where there is none."""
    if not isinstance(total, Tensor):
        return [weight / total for weight in weights] if total else of_samples
    return [
        torch.where(total == 0, share, weight / total)
        for weight, share in zip(weights, of_samples, strict=True)
    ]


def _joined(values: list[Any], shares: list[Any], pieces: Sequence[Piece]) -> Any:
    last = values[-1]
    if isinstance(last, dict) and all(isinstance(value, dict) for value in values):
        return {key: _joined([value.get(key) for value in values], shares, pieces) for key in last}
    if all(_is_number(value) for value in values):
        return sum(value * share for value, share in zip(values, shares, strict=True))
    rows = all(isinstance(v, Tensor) and v.dim() for v in values)
    if rows and all(v.shape[0] == p.size for v, p in zip(values, pieces, strict=True)):
        return torch.cat(values)
    return last


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.dim() and (value.is_floating_point() or value.is_complex())
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mapped(value: Any, size: int, take: Callable[[Any], Any]) -> Any:
    """The same structure with what has an entry for each sample replaced; the rest belongs to all of them."""
    if isinstance(value, Tensor):
        return take(value) if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        made: Any = copy(value)
        for key, child in value.items():
            made[key] = _mapped(child, size, take)
        return made
    if isinstance(value, list | tuple):
        leaves = not any(isinstance(one, Tensor | Mapping | list | tuple) for one in value)
        if isinstance(value, list) and leaves:
            return take(value) if len(value) == size else value
        children = [_mapped(child, size, take) for child in value]
        return type(value)(*children) if hasattr(value, "_fields") else type(value)(children)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), size, take) for f in fields(value)})
    return value

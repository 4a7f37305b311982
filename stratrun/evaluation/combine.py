"""What the ranks gathered, put together as one process would have gathered it. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stratrun.errors import MetricError


@dataclass(slots=True)
class Seen:
    """The batches that one rank counted, in the order of counting."""

    sizes: list[int | None] = field(default_factory=list)
    positions: list[Sequence[int] | None] = field(default_factory=list)

    @property
    def samples(self) -> int | None:
        """How many samples; None when a loader did not say."""
        known = [size for size in self.sizes if size is not None]
        return sum(known) if len(known) == len(self.sizes) else None


class Order:
    """The order in which one process would have seen what the ranks gathered side by side.

    Known when the loader told the position of every sample. Otherwise things stay in the order of
    the ranks.
    """

    def __init__(self, ranks: Sequence[Seen]) -> None:
        self.active: list[bool] = [bool(seen.sizes) for seen in ranks]
        """Which ranks had any batch."""
        self._known = all(p is not None and len(p) > 0 for seen in ranks for p in seen.positions)
        if not self._known:
            return
        self._keys = [_keys(seen) for seen in ranks]

    def sort(self, chunks: Sequence[Sequence[Any]], counts: Sequence[Sequence[int]]) -> list[Any]:
        """Sort things that were gathered `counts[rank][batch]` at a time.

        Where a batch gave one thing for each sample, each goes to the place of its sample; otherwise
        the things of a batch stay together.
        """
        flat = [thing for rank in chunks for thing in rank]
        countable = [sum(rank) for rank in counts] == [len(rank) for rank in chunks]
        if not self._known or not countable or min((min(rank, default=0) for rank in counts), default=0) < 0:
            return flat
        keys = [
            key if count == len(key) else key[:1].expand(count)
            for rank_keys, rank_counts in zip(self._keys, counts, strict=True)
            for key, count in zip(rank_keys, rank_counts, strict=True)
        ]
        return [flat[i] for i in _argsort(keys)]

    def arrange(self, states: Mapping[str, Sequence[list[Any]]]) -> dict[str, list[Any]]:
        """Join the list states of one metric, each given by rank.

        Their elements belong together (predictions and targets), so they are sorted all in the same way,
        or stay in the order of the ranks where that is not possible.
        """
        levels = {name: self._level(parts) for name, parts in states.items() if any(parts)}
        level = next(iter(levels.values()), None) if len(set(levels.values())) == 1 else None
        return {name: self._joined(parts, level if any(parts) else None) for name, parts in states.items()}

    def _level(self, parts: Sequence[list[Any]]) -> str | None:
        """What an element of a list state stands for: a "sample", a "batch", or a batch of "rows"."""
        if not self._known:
            return None
        counts = [len(part) for part in parts]
        if counts == [sum(len(key) for key in keys) for keys in self._keys]:
            return "sample"
        if counts != [len(keys) for keys in self._keys]:
            return None
        lengths = [len(key) for keys in self._keys for key in keys]
        chunks = [chunk for part in parts for chunk in part]
        alike = all(
            isinstance(c, Tensor) and c.dim() > 0 and c.shape[1:] == chunks[0].shape[1:] for c in chunks
        )
        return "rows" if alike and [chunk.shape[0] for chunk in chunks] == lengths else "batch"

    def _joined(self, parts: Sequence[list[Any]], level: str | None) -> list[Any]:
        flat = [thing for part in parts for thing in part]
        if level is None:
            return flat
        keys = [key for rank in self._keys for key in rank]
        if level == "rows":
            return [torch.cat(flat)[_argsort(keys)]]
        return [flat[i] for i in _argsort(keys if level == "sample" else [key[:1] for key in keys])]


def _keys(seen: Seen) -> list[Tensor]:
    """A sortable key for each sample of each batch: the position, after those of earlier passes.

    Positions that begin anew belong to another pass over data (a second loader).
    """
    keys: list[Tensor] = []
    passed, last = 0, -1
    for positions in seen.positions:
        mine = torch.tensor(list(positions or ()), dtype=torch.int64)
        first = int(mine[0])
        passed += first <= last
        last = first
        keys.append(mine + (passed << 44))
    return keys


def _argsort(keys: Sequence[Tensor]) -> list[int]:
    return torch.cat(list(keys)).argsort(stable=True).tolist() if keys else []


def merge(reduce: str, values: Sequence[Any], default: Any) -> Any:
    """One value out of those of all ranks, each of which started from `default`.

    Args:
        reduce: "sum", "max" or "min".
    """
    if not any(isinstance(value, Tensor) for value in values):
        if reduce == "sum":
            return sum(values) - (len(values) - 1) * default
        return max(values) if reduce == "max" else min(values)
    stacked = stack(values)
    if reduce != "sum":
        return stacked.amax(0) if reduce == "max" else stacked.amin(0)
    # In double precision and by rank, so that the sum does not depend on who adds first.
    wide = stacked.double() if stacked.is_floating_point() else stacked
    start = _wide(default).cpu()
    if start.any():
        wide = wide - start.to(wide.dtype)
        return (wide.sum(0) + start).to(stacked.dtype)
    return wide.sum(0).to(stacked.dtype)


def stack(values: Sequence[Any]) -> Tensor:
    """Values of a state by rank as one tensor; a default spreads to the shape that updates gave it."""
    tensors = [_wide(value) for value in values]
    try:
        return torch.stack(list(torch.broadcast_tensors(*tensors)))
    except RuntimeError as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise MetricError(f"its shape differs from rank to rank: {shapes}") from error


def _wide(value: Any) -> Tensor:
    """A tensor as it is, a number of the host in the precision that it has there."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def on_cpu(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Something on its way to another rank; what is shared stays shared, so that it travels once."""
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = _on_cpu(value, memo)
    return memo[id(value)]


def _on_cpu(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        # A view would drag along all of the memory that it looks into.
        whole = value.untyped_storage().nbytes() == value.nbytes
        return value.detach().cpu() if whole else value.detach().cpu().clone()
    if type(value) is dict:
        return {key: on_cpu(part, memo) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [on_cpu(part, memo) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    # Containers of other packages move themselves.
    return value.to("cpu") if callable(getattr(value, "to", None)) else value


def on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [on_device(part, device) for part in value] if isinstance(value, list) else value

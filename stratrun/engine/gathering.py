"""What processes hold, brought together."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from stratrun.engine.saved import Exchange

T = TypeVar("T")


def mean(ranks: Exchange, values: Mapping[str, float]) -> dict[str, float]:
    """Numbers averaged over all processes, in one exchange."""
    names = sorted(values)
    if not names:
        return {}
    packed = torch.tensor([float(values[name]) for name in names], dtype=torch.float64)
    total = ranks.sum(packed) / ranks.world_size
    return dict(zip(names, total.tolist(), strict=True))


def in_order(ranks: Exchange, items: list[tuple[int, T]]) -> list[T]:
    """One list of what all processes hold, in order of the first of each pair."""
    together = [item for part in ranks.gather(items) for item in part]
    return [value for _, value in sorted(together, key=lambda item: item[0])]

"""Where two trainings differ, to the bit, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratrun.cli.verify_resume.outcome import Outcome, RowKey

LOGGED = "logged"
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One area of the state: how much there is of it, and what differs."""

    area: str
    count: int
    numbers: int
    """Elements of the tensors in it."""
    differing: tuple[str, ...]
    """The largest first."""

    def __str__(self) -> str:
        what = "rows" if self.area == LOGGED else "tensors" if self.numbers else "values"
        if self.count == 1:
            what = what[:-1]
        of_numbers = f", {self.numbers:,} numbers" if self.numbers else ""
        if not self.differing:
            return f"{self.area}: {self.count} {what}{of_numbers}"
        lines = [f"{self.area}: {len(self.differing)} of {self.count} {what} not equal"]
        lines += [f"    {one}" for one in self.differing[:_SHOWN]]
        if len(self.differing) > _SHOWN:
            lines.append(f"    and {len(self.differing) - _SHOWN} more")
        return "\n".join(lines)


def findings(one: Outcome, other: Outcome, since: int) -> list[Finding]:
    """Compare two outcomes area by area.

    Args:
        since: The iteration that `other` was resumed from. What it logged before may be incomplete.
    """
    found = []
    for area in dict.fromkeys([*one.areas, *other.areas]):
        found.append(_compared(area, one.areas.get(area, {}), other.areas.get(area, {})))
    if one.step != other.step:
        found.append(Finding("iterations", 1, 0, (f"ended after {one.step} and {other.step}",)))
    found.append(_compared_rows(one.rows, other.rows, since))
    return found


def _compared(area: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Finding:
    names = list(dict.fromkeys([*one, *other]))
    told: list[tuple[float, str]] = []
    for name in names:
        if name not in one or name not in other:
            which = "uninterrupted" if name in one else "resumed"
            told.append((float("inf"), f"{name} is there in the {which} run alone"))
        elif not same(one[name], other[name]):
            told.append(_told(area, name, one[name], other[name]))
    told.sort(key=lambda entry: -entry[0])
    numbers = sum(value.numel() for value in one.values() if isinstance(value, Tensor))
    if area == "generators":
        numbers = 0
    return Finding(area, len(names), numbers, tuple(text for _, text in told))


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, so that nan equals itself, and zero no negative zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(_bytes(one), _bytes(other))
    if isinstance(one, float):
        return one.hex() == float(other).hex()
    return bool(one.tobytes() == other.tobytes() if hasattr(one, "tobytes") else one == other)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _told(area: str, name: str, one: Any, other: Any) -> tuple[float, str]:
    """How far apart two values are, and the words for it."""
    if area == "generators":
        return 0.0, f"{name} is at another place"
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return 0.0, f"{name} is {_short(one)} uninterrupted and {_short(other)} resumed"
    if one.shape != other.shape or one.dtype != other.dtype:
        kinds = [f"{tuple(t.shape)} of {t.dtype}" for t in (one, other)]
        return float("inf"), f"{name} is {kinds[0]} uninterrupted and {kinds[1]} resumed"
    wide = torch.complex128 if one.is_complex() else torch.float64
    apart = (one.to(wide) - other.to(wide)).abs()
    largest = float(apart.max()) if not apart.isnan().any() else float("nan")
    count = int((_rows_of(one) != _rows_of(other)).any(dim=1).sum())
    text = f"{name} by up to {largest:.3g} in {count:,} of {one.numel():,} numbers"
    return (largest if largest == largest else float("inf")), text


def _rows_of(tensor: Tensor) -> Tensor:
    """The bytes of each element."""
    return _bytes(tensor).reshape(tensor.numel(), -1)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compared_rows(
    one: Mapping[RowKey, dict[str, Any]], other: Mapping[RowKey, dict[str, Any]], since: int
) -> Finding:
    keys = sorted(key for key in {*one, *other} if key[0] > since or (key in one and key in other))
    told = []
    for key in keys:
        if not same(one.get(key), other.get(key)):
            told.append(_told_row(key, one.get(key), other.get(key)))
    return Finding(LOGGED, len(keys), 0, tuple(told))


def _told_row(key: RowKey, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    where = f"iteration {key[0]} ({key[1]})"
    if one is None or other is None:
        which = "resumed" if one is None else "uninterrupted"
        return f"{where} has {', '.join(key[2][-3:])} in the {which} run alone"
    values = [
        f"{name} {_short(one[name])} and {_short(other[name])}" for name in one if one[name] != other[name]
    ]
    return f"{where}: {', '.join(values[:3])}"
